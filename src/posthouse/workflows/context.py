"""The context that workflow code sees; the engine implements it."""

import random as random_module
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel

from posthouse.events.types import Event
from posthouse.inputs.model import Answer, OnTimeout, Request
from posthouse.journal.model import AgentAnswer, ChildEnd

T = TypeVar("T")


@dataclass(frozen=True)
class Child:
    """A child run, and the step that made it."""

    key: str
    run_id: str


class RunContext(Protocol):
    """Everything that a workflow does to the world goes through here, under a name, once.

    Keys are names, never counters: two calls with the same key in one run are a fault of the workflow.
    """

    @property
    def run_id(self) -> str:
        """The run's ULID."""
        ...

    async def step(self, key: str, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Does the work once and records what it returned (JSON values, dataclasses or models, by its annotation)."""
        ...

    async def agent(
        self,
        name: str,
        task: str,
        *,
        key: str | None = None,
        max_iterations: int | None = None,
        output: type[BaseModel] | None = None,
    ) -> AgentAnswer:
        """Lets the named agent work on the task; the key is its name unless another is given.

        With an output model the agent's answer is JSON of its form: `answer.read(Model)`.
        """
        ...

    async def gather(self, *branches: Awaitable[T]) -> list[T]:
        """The branches' values in order; all of them end or park before anything is raised."""
        ...

    async def spawn(
        self, key: str, workflow: str, request: BaseModel, *, subtask: str | None = None
    ) -> Child:
        """Makes a child run of the workflow, which any worker carries, and goes on.

        `subtask` is what events call it; the key unless another is given. Raises LimitReached.
        """
        ...

    async def join(self, child: Child) -> ChildEnd:
        """What has become of a child run; until it has ended the run waits without a worker."""
        ...

    async def ask(
        self,
        key: str,
        question: str,
        *,
        form: type[BaseModel] | None = None,
        expires_in: float | None = None,
        on_timeout: OnTimeout = OnTimeout.WAIT,
        default: Any = None,
    ) -> Answer:
        """Asks a person, and waits without a worker for as long as it takes, or `expires_in` seconds.

        With a form the answer's value fits it. Raises InputExpired when `on_timeout` is fail.
        """
        ...

    async def request(
        self, key: str, request: Request, *, expires_in: float | None = None
    ) -> Answer:
        """Asks a person for what the request says: an approval, say, with what exactly is to be approved."""
        ...

    @property
    def agents(self) -> dict[str, str]:
        """What each agent is for, by name."""
        ...

    async def emit(self, key: str, event: Event) -> None:
        """Writes one event into the run's log, once."""
        ...

    async def sleep(self, key: str, seconds: float) -> None:
        """Parks the run for so long; no worker is held."""
        ...

    async def now(self, key: str) -> datetime:
        """The time (UTC) when this was first asked."""
        ...

    def uuid(self, key: str) -> UUID:
        """A UUID that is the same at every replay."""
        ...

    def random(self, key: str) -> random_module.Random:
        """A generator that gives the same numbers at every replay."""
        ...
