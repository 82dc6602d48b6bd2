"""The context that workflow code sees, on top of the steps of one slice."""

import asyncio
import hashlib
import random as random_module
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol, TypeVar, get_type_hints
from uuid import UUID

import structlog
from pydantic import BaseModel, TypeAdapter

from posthouse import clock
from posthouse.agents.spec import Agent
from posthouse.engine.steps import Draining, JournalledSteps, Order
from posthouse.errors import Fatal, OwnershipLost, PosthouseError, StepFailed
from posthouse.events.types import Draft, Event
from posthouse.inputs.form import FormUnusable, check_form
from posthouse.inputs.model import Answer, Kind, OnTimeout, Question, Request
from posthouse.journal.model import (
    AgentAnswer,
    ChildEnd,
    Done,
    Parked,
    Step,
    Steps,
    Wait,
    checked_key,
    digest_of,
)
from posthouse.workflows.context import Child
from posthouse.workflows.definition import Workflow

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
        self,
        steps: JournalledSteps,
        agents: dict[str, Agent],
        runner: AgentRunner,
        workflows: Mapping[tuple[str, int], Workflow[Any, Any]],
    ) -> None:
        self._steps = steps
        self._agents = agents
        self._runner = runner
        self._workflows = workflows

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
        parked = [end for end in raised if isinstance(end, Parked)]
        if parked:
            raise Parked(tuple({wait: None for end in parked for wait in end.waits}))
        if raised:
            raise raised[0]
        return [end for end in ends if not isinstance(end, BaseException)]

    async def spawn(
        self, key: str, workflow: str, request: BaseModel, *, subtask: str | None = None
    ) -> Child:
        """Makes a child run, which any worker carries; the run itself goes on."""
        definition = self._definition(workflow)
        name = checked_key(subtask or key)
        given = definition.input_model.model_validate(request.model_dump())
        order = Order(
            key=key,
            subtask=name,
            workflow=definition.name,
            version=definition.version,
            input=given.model_dump_json(),
            digest=digest_of(definition.name, given),
        )
        return Child(key=key, run_id=await self._steps.spawn(order))

    def _definition(self, name: str) -> Workflow[Any, Any]:
        versions = [version for known, version in self._workflows if known == name]
        if not versions:
            raise Fatal(f"there is no workflow {name!r}")
        return self._workflows[name, max(versions)]

    async def join(self, child: Child) -> ChildEnd:
        """What has become of a child run; until it has ended the run waits without a worker."""
        return await self._steps.join(child.key, child.run_id)

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
        """Asks a person, and waits without a worker for as long as it takes."""
        schema = form.model_json_schema() if form else None
        request = Request(
            kind=Kind.QUESTION,
            question=question,
            form=schema,
            on_timeout=on_timeout,
            default=default.model_dump(mode="json") if isinstance(default, BaseModel) else default,
            digest=digest_of(question, schema),
        )
        return await self.request(key, request, expires_in=expires_in)

    async def request(
        self, key: str, request: Request, *, expires_in: float | None = None
    ) -> Answer:
        """Asks a person for what the request says: an approval, say, with what exactly is to be approved."""
        if (expires_in is None) != (request.on_timeout is OnTimeout.WAIT):
            raise Fatal(
                "`expires_in` and `on_timeout` go together: give both (and not `wait`), or neither"
            )
        if request.form is not None:
            try:
                check_form(request.form)
            except FormUnusable as error:
                raise Fatal(str(error)) from None
        return await self._steps.ask(Question(key, request, expires_in))

    @property
    def agents(self) -> dict[str, str]:
        """What each agent is for, by name."""
        return {name: agent.spec.description for name, agent in self._agents.items()}

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
