"""The context that workflow code sees, on top of the steps of one slice."""

import asyncio
import hashlib
import random as random_module
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol, TypeVar, get_type_hints
from uuid import UUID

import structlog
from pydantic import BaseModel, TypeAdapter

from posthouse import clock
from posthouse.agents.spec import Agent
from posthouse.engine.steps import Draining, JournalledSteps
from posthouse.errors import Fatal, OwnershipLost, PosthouseError, StepFailed
from posthouse.events.types import Draft, Event
from posthouse.journal.model import AgentAnswer, Done, Parked, Step, Steps, Wait, digest_of

T = TypeVar("T")

log = structlog.get_logger()

_NOTHING: TypeAdapter[None] = TypeAdapter(None)
_MILLISECONDS: TypeAdapter[int] = TypeAdapter(int)


_kept_adapter = lru_cache(maxsize=1024)(TypeAdapter[Any])


def _adapter_of(hint: Any) -> TypeAdapter[Any]:
    try:
        return _kept_adapter(hint)
    except TypeError:  # a hint that cannot be hashed
        return TypeAdapter(hint)


class AgentRunner(Protocol):
    """What carries an agent through its turns."""

    async def run(
        self,
        steps: Steps,
        agent: Agent,
        *,
        key: str,
        task: str,
        max_iterations: int | None = None,
        output: type[BaseModel] | None = None,
    ) -> AgentAnswer:
        """The agent's answer; every turn and tool call is a step under the key."""
        ...


class Context:
    """Implements RunContext for one slice of a run."""

    def __init__(
        self, steps: JournalledSteps, agents: dict[str, Agent], runner: AgentRunner
    ) -> None:
        self._steps = steps
        self._agents = agents
        self._runner = runner

    @property
    def run_id(self) -> str:
        """The run's ULID."""
        return self._steps.run_id

    async def step(self, key: str, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Does the work once and records what it returned."""

        async def once() -> Done[T]:
            try:
                return Done(await work(*arguments))
            except PosthouseError:
                raise
            except Exception as error:
                log.exception("step_failed", step=key)
                raise StepFailed(f"step {key!r} failed: {type(error).__name__}") from error

        adapter = _adapter_of(get_type_hints(work).get("return", Any))
        return await self._steps.run(Step(key, once, adapter, digest=digest_of(*arguments)))

    async def agent(
        self,
        name: str,
        task: str,
        *,
        key: str | None = None,
        max_iterations: int | None = None,
        output: type[BaseModel] | None = None,
    ) -> AgentAnswer:
        """Lets the named agent work on the task."""
        agent = self._agents.get(name)
        if agent is None:
            raise Fatal(f"there is no agent {name!r}; known are {', '.join(sorted(self._agents))}")
        return await self._runner.run(
            self._steps,
            agent,
            key=key or name,
            task=task,
            max_iterations=max_iterations,
            output=output,
        )

    async def gather(self, *branches: Awaitable[T]) -> list[T]:
        """The branches' values in order; all of them end or park before anything is raised."""
        ends = await asyncio.gather(*branches, return_exceptions=True)
        raised = [end for end in ends if isinstance(end, BaseException)]
        for decisive in (OwnershipLost, asyncio.CancelledError, Draining):
            for end in raised:
                if isinstance(end, decisive):
                    raise end
        waits = tuple(wait for end in raised if isinstance(end, Parked) for wait in end.waits)
        if waits:
            raise Parked(waits)
        if raised:
            raise raised[0]
        return [end for end in ends if not isinstance(end, BaseException)]

    async def emit(self, key: str, event: Event) -> None:
        """Writes one event into the run's log, once."""

        async def once() -> Done[None]:
            return Done(None, events=(Draft(event=event, step=key),))

        await self._steps.run(Step(key, once, _NOTHING, digest=digest_of(event)))

    async def sleep(self, key: str, seconds: float) -> None:
        """Parks the run for so long; no worker is held."""
        digest = digest_of(seconds)
        wait = Wait(key, "timer", round(seconds * 1000), f'{{"digest":"{digest}","result":null}}')

        async def once() -> Done[None]:
            raise Parked((wait,))

        await self._steps.run(Step(key, once, _NOTHING, digest=digest))

    async def now(self, key: str) -> datetime:
        """The time (UTC) when this was first asked."""

        async def once() -> Done[int]:
            return Done(clock.wall_ms())

        moment = await self._steps.run(Step(key, once, _MILLISECONDS))
        return datetime.fromtimestamp(moment / 1000, UTC)

    def uuid(self, key: str) -> UUID:
        """A UUID that is the same at every replay."""
        return UUID(bytes=self._seed("uuid", key)[:16], version=4)

    def random(self, key: str) -> random_module.Random:
        """A generator that gives the same numbers at every replay."""
        return random_module.Random(self._seed("random", key))

    def _seed(self, kind: str, key: str) -> bytes:
        return hashlib.sha256(f"{self.run_id}/{kind}/{key}".encode()).digest()
