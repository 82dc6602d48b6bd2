"""The context that workflow code sees; the engine implements it."""

import random as random_module
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel

from posthouse.events.types import Event
from posthouse.journal.model import AgentAnswer

T = TypeVar("T")


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
