"""Steps that run once: recalled from the journal, or done, committed and returned."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter

from posthouse import clock
from posthouse.budget.model import Busy, Granted, Reservation, Verdict
from posthouse.engine.insist import insist
from posthouse.engine.leases import Held, Leases
from posthouse.engine.pusher import Pusher
from posthouse.errors import Fatal, LimitReached, RunFailed, StepFailed, readable, recorded_failure
from posthouse.events.types import Draft, MessageDelta, RunCreated
from posthouse.ids import new_run_id
from posthouse.inputs.model import Answer, Question
from posthouse.journal.model import (
    ChildEnd,
    Done,
    Outcome,
    Parked,
    Prompt,
    Step,
    StepError,
    Wait,
    checked_key,
    lost_by,
)
from posthouse.journal.store import JournalStore, Loaded, Record, Spawn, Told, outcome_json

T = TypeVar("T")

_CHILD: TypeAdapter[str] = TypeAdapter(str)
_CHILD_END: TypeAdapter[ChildEnd] = TypeAdapter(ChildEnd)
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
_MODELS: TypeAdapter[dict[str, tuple[str, ...]]] = TypeAdapter(dict[str, tuple[str, ...]])

FIRST_LOOK_MS = 60_000
LAST_LOOK_MS = 3_600_000
SHORTEST_HOLD, LONGEST_HOLD = 0.05, 1.0


class Draining(BaseException):
    """The worker stops: no further step begins here, the run is given back."""


@dataclass(frozen=True)
class Bounds:
    """How much one run may do, and how long it waits for a model's endpoint that is down (0: not at all)."""

    steps: int = 10_000
    events: int = 10_000
    output_bytes: int = 1_048_576
    model_wait_seconds: float = 900.0


class DrainFlag:
    """Says that no further step begins here, and why; raised once and for all, if wanted with the first commit."""

    def __init__(self) -> None:
        self.raised = False
        self.reason = "drain"
        self.with_a_commit = False

    def committed(self) -> None:
        """A step has been committed: whoever was a suspect is none any more."""
        if self.with_a_commit and not self.raised:
            self.raised, self.reason = True, "isolation"


@dataclass(frozen=True)
class Shared:
    """What the steps of every run of a worker share."""

    store: JournalStore
    leases: Leases
    pusher: Pusher
    bounds: Bounds
    drain: DrainFlag = field(default_factory=DrainFlag)


@dataclass(frozen=True)
class Order:
    """A child run that a step makes: what it is of, and what its parent calls it. `input` is JSON text."""

    key: str
    subtask: str
    workflow: str
    version: int
    input: str
    digest: str


class JournalledSteps:
    """The steps of one slice of a run, under its fence."""

    def __init__(self, shared: Shared, held: Held, loaded: Loaded) -> None:
        self._shared = shared
        self._held = held
        self._outcomes = loaded.outcomes
        self._starts = loaded.starts
        self._intents = loaded.intents
        self._asked: dict[str, float] = {}
        self._used: set[str] = set()
        self._open: set[str] = set()
        self._writes: set[asyncio.Future[Any]] = set()
        self._pinned: dict[str, Prompt] = {}
        self._former: dict[str, str] = {}

    @property
    def models(self) -> Mapping[str, tuple[str, ...]]:
        """The models that this run wants by tier; empty for those of the fleet."""
        text = self._held.run.models
        return _MODELS.validate_json(text) if text else {}

    @property
    def run_id(self) -> str:
        """The run that these steps belong to."""
        return self._held.run.run_id

    async def run(self, step: Step[T]) -> T:
        """The step's recorded value; or its work is done, committed and returned. Raises the recorded error."""
        recorded = self._recorded(step.key, step.digest)
        if recorded is not None:
            return self._recalled(step, recorded)
        await self._begin(step)
        return await self._do(step)

    def _recorded(self, key: str, digest: str) -> Outcome | None:
        """What the journal holds of the step, unless that is from before a retry and of other work."""
        if checked_key(key) in self._used:
            raise Fatal(f"step key {key!r} is used twice in this run")
        self._used.add(key)
        recorded = self._outcomes.get(key)
        if recorded is None or recorded.digest == digest:
            return recorded
        if recorded.seq >= self._held.run.retried_seq:
            return recorded
        # With it goes what was done under it: the answer to another question is of no use here.
        for name in [one for one in self._outcomes if one == key or one.startswith(f"{key}/")]:
            self._former[name] = str(self._outcomes.pop(name).seq)
        return None

    async def spawn(self, order: "Order") -> str:
        """The id of the child run that the step makes. Raises LimitReached."""
        step = Step(order.key, _unreachable, _CHILD, digest=order.digest)
        recorded = self._recorded(order.key, order.digest)
        if recorded is not None:
            return self._recalled(step, recorded)
        await self._begin(step)
        child = new_run_id()
        outcome = Outcome(seq=0, epoch=0, time=0, digest=order.digest, result=child)
        text, _ = outcome_json(outcome)
        created = RunCreated(workflow=order.workflow, version=order.version)
        spawn = Spawn(
            key=order.key,
            end_key=f"{order.key}/end",
            child=child,
            outcome=text,
            subtask=order.subtask,
            workflow=order.workflow,
            version=order.version,
            input=order.input,
            created=Draft(event=created),
            former=self._former.pop(order.key, ""),
        )
        store, held = self._shared.store, self._held
        await self._write(lambda: self._told(store.spawn(held.run, held.told, spawn)))
        self._outcomes[order.key] = outcome
        return child

    async def join(self, key: str, child: str) -> ChildEnd:
        """What has become of the child that the step under `key` made; until it has ended the run waits."""
        end_key = f"{key}/end"

        async def wait() -> Done[ChildEnd]:
            raise Parked((Wait(end_key, "child", None, child),))

        return await self.run(Step(end_key, wait, _CHILD_END))

    async def ask(self, question: Question) -> Answer:
        """What a person answered; until then the run waits without a worker. Raises InputExpired."""

        async def wait() -> Done[Answer]:
            store, held = self._shared.store, self._held
            former = self._former.pop(question.key, "")
            await self._write(lambda: self._told(store.ask(held.run, held.told, question, former)))
            raise Parked((Wait(question.key, "input", None),))

        request = question.request
        step = Step(question.key, wait, _ANSWER, digest=request.digest, agent=request.agent)
        return await self.run(step)

    async def reserve(self, wanted: Reservation) -> Verdict:
        """Whether the budget allows a call that is about to be made under the step; its commit settles it."""
        if not self._held.run.budgeted:
            return Granted(None)
        held, wait = self._held, SHORTEST_HOLD
        while True:
            seq, verdict = await insist(
                lambda: self._shared.store.reserve(held.run, held.told, wanted)
            )
            held.tell(seq)
            if not isinstance(verdict, Busy):
                return verdict
            # Calls in flight take as long as models take; then there is most often room.
            if self._shared.drain.raised:
                raise Draining
            await clock.sleep(wait)
            wait = min(2 * wait, LONGEST_HOLD)

    async def extend(self, key: str, grown: Mapping[str, int]) -> None:
        """Raises limits of the budget, by name, once for the key."""
        held = self._held
        await insist(lambda: self._shared.store.extend(held.run, held.told, key, grown))

    def _recalled(self, step: Step[T], recorded: Outcome) -> T:
        if recorded.digest != step.digest:
            after = min(FIRST_LOOK_MS * 2 ** min(self._held.run.looks, 10), LAST_LOOK_MS)
            raise Parked((Wait(step.key, "version", after),))
        if recorded.error is not None:
            raise recorded_failure(recorded.error.code, recorded.error.message)
        return step.result.validate_json(orjson.dumps(recorded.result))

    async def _begin(self, step: Step[T]) -> None:
        if self._shared.drain.raised:
            raise Draining
        bounds = self._shared.bounds
        made = max(len(self._outcomes), len(self._used) - 1)
        if made >= bounds.steps or self._held.told - self._held.copied >= bounds.events:
            raise LimitReached("the run reached its bound of steps or events")
        # Of one in doubt it is not known whether it is done at all: that is announced in its place.
        doubted = step.intent and step.intent.instead and step.key in self._intents
        if step.opening is not None and step.key not in self._open and not doubted:
            events = [step.opening.event]
            if step.key in self._starts and step.opening.superseded is not None:
                events.insert(0, step.opening.superseded)
            await self._write(lambda: self._start(step.key, events))
        await self._shared.leases.confirmed(self._held)
        if self._shared.drain.raised:
            raise Draining

    async def _do(self, step: Step[T]) -> T:
        began = clock.monotonic()
        try:
            done = await self._done(step)
        except RunFailed as error:
            lost = lost_by(step)
            await self._record(step, began, lost, error=_as_recorded(error))
            raise recorded_failure(error.code, str(error)) from error
        result = step.result.dump_json(done.value)
        if len(result) > self._shared.bounds.output_bytes:
            failure = StepFailed(f"the result of step {step.key!r} is too large")
            lost = Done(None, done.usage, by_model=done.by_model)
            await self._record(step, began, lost, error=_as_recorded(failure))
            raise failure
        # What a replay will see is what is seen now.
        value = step.result.validate_json(result)
        await self._record(step, began, done, result=orjson.Fragment(result))
        return value

    async def _done(self, step: Step[T]) -> Done[T]:
        intent = step.intent
        if intent is None:
            return await step.work()
        if step.key not in self._intents:
            await self._write(lambda: self._intend(intent.doubt))
            await self._shared.leases.confirmed(self._held)
            return await step.work()
        if f"{step.key}/doubt" not in self._starts:
            await self._write(lambda: self._start(f"{step.key}/doubt", [intent.doubt]))
        await self._shared.leases.confirmed(self._held)
        return await (intent.instead or step.work)()

    async def _intend(self, doubt: Draft) -> None:
        store, held = self._shared.store, self._held
        told, _ = await store.start(held.run, held.told, intents=[doubt])
        held.tell(told.seq, told.copied)

    async def _record(
        self,
        step: Step[Any],
        began: float,
        done: Done[Any],
        *,
        result: orjson.Fragment | None = None,
        error: StepError | None = None,
    ) -> None:
        outcome = Outcome(
            seq=0,
            epoch=0,
            time=0,
            digest=step.digest,
            agent=step.agent,
            duration_ms=round((clock.monotonic() - began) * 1000),
            result=result,
            error=error,
            usage=done.usage.spent(),
            by_model={model: usage.spent() for model, usage in done.by_model.items()},
        )
        text, blob = outcome_json(outcome)
        opens = tuple(opening.key for opening in done.opens)
        events = (*done.events, *(opening.event for opening in done.opens))
        # No piece of a text may come after the event that says that it is whole.
        await self._shared.pusher.sent()
        former = self._former.pop(step.key, "")
        record = Record(step.key, text, blob, done.usage, events, opens, former)
        await self._write(lambda: self._commit(record))
        self._outcomes[step.key] = outcome
        self._open.update(opens)

    async def _start(self, key: str, events: list[Draft]) -> None:
        store, held = self._shared.store, self._held
        told, _ = await store.start(held.run, held.told, steps=[key], events=events)
        held.tell(told.seq, told.copied)

    async def _commit(self, record: Record) -> None:
        held = self._held
        await self._told(self._shared.store.commit(held.run, held.told, record))
        held.run = replace(held.run, down_since=0)
        self._shared.drain.committed()

    async def _told(self, call: Awaitable[Told]) -> None:
        told = await call
        self._held.tell(told.seq, told.copied)

    async def _write(self, call: Callable[[], Awaitable[None]]) -> None:
        # A cancelled call may or may not have landed, so a write outlives whoever waits for it.
        write = asyncio.ensure_future(insist(call))
        self._writes.add(write)
        write.add_done_callback(self._written)
        await asyncio.shield(write)

    def _written(self, write: asyncio.Future[Any]) -> None:
        self._writes.discard(write)
        if not write.cancelled():
            # Whoever waited may be gone; a refusal that nobody hears is no error.
            write.exception()

    async def settled(self) -> None:
        """Returns when no write is under way."""
        if self._writes:
            await asyncio.gather(*self._writes, return_exceptions=True)

    async def pin(self, prompt: Prompt) -> Prompt:
        """The prompt that this run's tree is pinned to: the one given, unless another was pinned first."""
        if prompt.name not in self._pinned:
            held = self._held
            told, [pinned] = await insist(
                lambda: self._shared.store.start(held.run, held.told, pins=[prompt])
            )
            held.tell(told.seq, told.copied)
            self._pinned[prompt.name] = pinned
        return self._pinned[prompt.name]

    def push(self, delta: MessageDelta, *, agent: str, step: str) -> None:
        """Sends a piece of text to whoever reads the run now; never waits, never fails."""
        self._shared.pusher.push(self._held.run, delta, agent=agent, step=step)

    def announce(self, draft: Draft) -> None:
        """Logs an event that belongs to no commit; never waits, never fails."""
        write = asyncio.ensure_future(self._announce(draft))
        self._writes.add(write)
        write.add_done_callback(self._announced)

    async def _announce(self, draft: Draft) -> Told:
        # A reader that is told to forget a text must have all of it by then.
        await self._shared.pusher.sent()
        told, _ = await self._shared.store.start(self._held.run, self._held.told, events=[draft])
        return told

    def _announced(self, write: asyncio.Future[Any]) -> None:
        self._writes.discard(write)
        if not write.cancelled() and write.exception() is None:
            self._held.tell(write.result().seq, write.result().copied)

    async def elapsed(self, key: str) -> float:
        """Seconds that the recorded steps under `key` took before this slice, and since this slice first asked."""
        spans = sorted(
            (outcome.time - outcome.duration_ms, outcome.time)
            for name, outcome in self._outcomes.items()
            if name.startswith(f"{key}/") and outcome.time
        )
        before, reached = 0, 0
        for start, end in spans:
            before += max(0, end - max(start, reached))
            reached = max(reached, end)
        here = clock.monotonic() - self._asked.setdefault(key, clock.monotonic())
        return before / 1000 + here


async def _unreachable() -> Done[str]:
    raise AssertionError("a child is made by its own script")


def _as_recorded(error: RunFailed) -> StepError:
    return StepError(code=error.code, message=readable(str(error)))
