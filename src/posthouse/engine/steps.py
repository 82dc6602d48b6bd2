"""Steps that run once: recalled from the journal, or done, committed and returned."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import orjson

from posthouse import clock
from posthouse.engine.insist import insist
from posthouse.engine.leases import Held, Leases
from posthouse.engine.pusher import Pusher
from posthouse.errors import Fatal, LimitReached, RunFailed, StepFailed, readable, recorded_failure
from posthouse.events.types import Draft, MessageDelta
from posthouse.journal.model import (
    Done,
    Outcome,
    Parked,
    Prompt,
    Step,
    StepError,
    Wait,
    checked_key,
)
from posthouse.journal.store import JournalStore, Loaded, Record, outcome_json

T = TypeVar("T")

FIRST_LOOK_MS = 60_000
LAST_LOOK_MS = 3_600_000


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
    """Says that this worker stops; raised once and for all."""

    def __init__(self) -> None:
        self.raised = False


@dataclass(frozen=True)
class Shared:
    """What the steps of every run of a worker share."""

    store: JournalStore
    leases: Leases
    pusher: Pusher
    bounds: Bounds
    drain: DrainFlag = field(default_factory=DrainFlag)


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

    @property
    def run_id(self) -> str:
        """The run that these steps belong to."""
        return self._held.run.run_id

    async def run(self, step: Step[T]) -> T:
        """The step's recorded value; or its work is done, committed and returned. Raises the recorded error."""
        key = checked_key(step.key)
        if key in self._used:
            raise Fatal(f"step key {key!r} is used twice in this run")
        self._used.add(key)
        recorded = self._outcomes.get(key)
        if recorded is not None:
            return self._recalled(step, recorded)
        await self._begin(step)
        return await self._do(step)

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
        if made >= bounds.steps or self._held.told >= bounds.events:
            raise LimitReached("the run reached its bound of steps or events")
        if step.opening is not None and step.key not in self._open:
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
            await self._record(step, began, Done(None), error=_as_recorded(error))
            raise recorded_failure(error.code, str(error)) from error
        result = step.result.dump_json(done.value)
        if len(result) > self._shared.bounds.output_bytes:
            failure = StepFailed(f"the result of step {step.key!r} is too large")
            await self._record(step, began, Done(None), error=_as_recorded(failure))
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
        await self._write(lambda: self._start(f"{step.key}/doubt", [intent.doubt]))
        await self._shared.leases.confirmed(self._held)
        return await (intent.instead or step.work)()

    async def _intend(self, doubt: Draft) -> None:
        store, held = self._shared.store, self._held
        seq, _ = await store.start(held.run, held.told, intents=[doubt])
        held.tell(seq)

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
        )
        text, blob = outcome_json(outcome)
        opens = tuple(opening.key for opening in done.opens)
        events = (*done.events, *(opening.event for opening in done.opens))
        # No piece of a text may come after the event that says that it is whole.
        await self._shared.pusher.sent()
        record = Record(step.key, text, blob, done.usage, events, opens)
        await self._write(lambda: self._commit(record))
        self._outcomes[step.key] = outcome
        self._open.update(opens)

    async def _start(self, key: str, events: list[Draft]) -> None:
        store, held = self._shared.store, self._held
        seq, _ = await store.start(held.run, held.told, steps=[key], events=events)
        held.tell(seq)

    async def _commit(self, record: Record) -> None:
        held = self._held
        held.tell(await self._shared.store.commit(held.run, held.told, record))
        held.run = replace(held.run, down_since=0)

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
            seq, [pinned] = await insist(
                lambda: self._shared.store.start(held.run, held.told, pins=[prompt])
            )
            held.tell(seq)
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

    async def _announce(self, draft: Draft) -> int:
        # A reader that is told to forget a text must have all of it by then.
        await self._shared.pusher.sent()
        seq, _ = await self._shared.store.start(self._held.run, self._held.told, events=[draft])
        return seq

    def _announced(self, write: asyncio.Future[Any]) -> None:
        self._writes.discard(write)
        if not write.cancelled() and write.exception() is None:
            self._held.tell(write.result())

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


def _as_recorded(error: RunFailed) -> StepError:
    return StepError(code=error.code, message=readable(str(error)))
