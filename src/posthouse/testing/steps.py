"""The journal in memory, with crashes to order, for tests of agents and tools."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from posthouse import clock
from posthouse.budget.model import Granted, Reservation, Verdict
from posthouse.errors import RunCode, RunFailed, recorded_failure
from posthouse.events.types import Draft, InputAnswered, InputExpired, InputRequested, MessageDelta
from posthouse.inputs.model import Answer, Decision, OnTimeout, Question, input_id
from posthouse.journal.model import (
    Done,
    Parked,
    Prompt,
    Step,
    StepError,
    Usage,
    Wait,
    checked_key,
    lost_by,
)

T = TypeVar("T")

ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


class Crashed(BaseException):
    """The process died here; whatever was not committed is lost."""


@dataclass(frozen=True)
class Crash:
    """Dies at the n-th commit (from 1): just before it, or just after it."""

    commit: int
    when: Literal["before", "after"] = "before"


class Record(BaseModel):
    """A committed step: its value as JSON text, or its error."""

    model_config = ConfigDict(frozen=True)

    digest: str
    value: bytes = b""
    error: StepError | None = None


@dataclass
class Kept:
    """What outlives a crash."""

    journal: dict[str, Record] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    events: list[Draft] = field(default_factory=list)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    clocks: dict[str, float] = field(default_factory=dict)
    usage: list[Usage] = field(default_factory=list)
    intents: set[str] = field(default_factory=set)
    doubts: set[str] = field(default_factory=set)
    questions: dict[str, Question] = field(default_factory=dict)
    asking: set[str] = field(default_factory=set)
    asking_since: float = 0.0
    asked_seconds: float = 0.0
    grown: dict[str, dict[str, int]] = field(default_factory=dict)


class MemorySteps:
    """Steps that are kept in memory; `reopen` is the next worker, with what was committed."""

    def __init__(
        self,
        run_id: str = "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        *,
        crash: Crash | None = None,
        now: Callable[[], float] = clock.monotonic,
        kept: Kept | None = None,
        epoch: int = 1,
    ) -> None:
        self._run_id = run_id
        self._crash = crash
        self._now = now
        self._epoch = epoch
        self._commits = 0
        self._dead = False
        self.kept = kept or Kept()
        self.models: Mapping[str, tuple[str, ...]] = {}
        self.budget: Callable[[Reservation], Verdict] | None = None
        self.reservations: list[Reservation] = []
        self.pushes: list[tuple[str, MessageDelta]] = []
        self.worked: list[str] = []
        self.announced_alone: list[str] = []

    @property
    def run_id(self) -> str:
        """The run that these steps belong to."""
        return self._run_id

    @property
    def event_types(self) -> list[str]:
        """The types of all events so far, in order."""
        return [draft.event.type for draft in self.kept.events]

    def reopen(self, crash: Crash | None = None) -> "MemorySteps":
        """The same run in another process."""
        return MemorySteps(
            self._run_id, crash=crash, now=self._now, kept=self.kept, epoch=self._epoch + 1
        )

    async def run(self, step: Step[T]) -> T:
        """The step's recorded value; or its work is done, committed and returned."""
        self._live()
        checked_key(step.key)
        record = self.kept.journal.get(step.key)
        if record is not None:
            return _replayed(step, record)
        self._open(step)
        self.worked.append(step.key)
        try:
            done = await self._work(step)
        except RunFailed as failed:
            error = StepError(code=failed.code, message=str(failed))
            self._commit(step.key, Record(digest=step.digest, error=error), lost_by(step))
            raise
        value = step.result.dump_json(done.value)
        self._commit(step.key, Record(digest=step.digest, value=value), done)
        return step.result.validate_json(value)

    async def pin(self, prompt: Prompt) -> Prompt:
        """The prompt that was pinned first."""
        self._live()
        return self.kept.prompts.setdefault(prompt.name, prompt)

    def push(self, delta: MessageDelta, *, agent: str, step: str) -> None:
        """Keeps the piece in `pushes`."""
        self.pushes.append((step, delta))

    def announce(self, draft: Draft) -> None:
        """Keeps the event."""
        self.kept.events.append(draft)

    async def ask(self, question: Question) -> Answer:
        """What `answer` said; until then it parks."""
        self._live()
        key, request = checked_key(question.key), question.request
        record = self.kept.journal.get(key)
        if record is not None:
            return _replayed(Step(key, _unreachable, ANSWER, digest=request.digest), record)
        if key not in self.kept.asking:
            if not self.kept.asking:
                self.kept.asking_since = self._now()
            self.kept.asking.add(key)
            self.kept.questions[key] = question
            asked = InputRequested(
                input_id=input_id(self._run_id, key),
                kind=request.kind,
                question=request.question,
                tool=request.tool or None,
            )
            self.kept.events.append(Draft(event=asked, agent=request.agent, step=key))
        raise Parked((Wait(key, "input", None),))

    def answer(self, key: str, answer: Answer) -> None:
        """A person answers the question under the key."""
        event = InputAnswered(input_id=input_id(self._run_id, key), decision=answer.decision)
        digest = self._closed(key, event).request.digest
        self.kept.journal[key] = Record(digest=digest, value=ANSWER.dump_json(answer))

    def expire(self, key: str) -> None:
        """Nobody answers the question under the key in time."""
        request = self._closed(key, InputExpired(input_id=input_id(self._run_id, key))).request
        if request.on_timeout is OnTimeout.FAIL:
            error = StepError(code=RunCode.INPUT_EXPIRED, message="Nobody answered in time.")
            self.kept.journal[key] = Record(digest=request.digest, error=error)
        else:
            value = ANSWER.dump_json(Answer(decision=Decision.REJECT, timed_out=True))
            self.kept.journal[key] = Record(digest=request.digest, value=value)

    def _closed(self, key: str, event: InputAnswered | InputExpired) -> Question:
        self.kept.asking.remove(key)
        if not self.kept.asking:
            self.kept.asked_seconds += self._now() - self.kept.asking_since
        self.kept.events.append(Draft(event=event, step=key))
        return self.kept.questions[key]

    async def reserve(self, wanted: Reservation) -> Verdict:
        """What `budget` says of it; the reservation is kept."""
        self._live()
        if self.budget is None:
            return Granted(None)
        self.reservations.append(wanted)
        return self.budget(wanted)

    async def extend(self, key: str, grown: Mapping[str, int]) -> None:
        """Keeps by how much the limits grew, once for the key."""
        self._live()
        self.kept.grown.setdefault(key, dict(grown))

    async def elapsed(self, key: str) -> float:
        """Seconds since the first call with this key, without those for which a person was asked."""
        self._live()
        began = self.kept.clocks.setdefault(checked_key(key), self._now())
        return self._now() - began - self.kept.asked_seconds

    def _live(self) -> None:
        if self._dead:
            raise Crashed

    async def _work(self, step: Step[T]) -> Done[T]:
        intent = step.intent
        if intent is None:
            return await step.work()
        if step.key not in self.kept.intents:
            self.kept.intents.add(step.key)
            return await step.work()
        if step.key not in self.kept.doubts:
            self.kept.doubts.add(step.key)
            self.kept.events.append(intent.doubt)
        return await (intent.instead or step.work)()

    def _open(self, step: Step[T]) -> None:
        started = self.kept.starts.get(step.key)
        self.kept.starts[step.key] = self._epoch
        if step.opening is None:
            return
        if started is None:
            self.announced_alone.append(step.key)
            self.kept.events.append(step.opening.event)
        elif started != self._epoch and step.opening.superseded is not None:
            self.kept.events.append(step.opening.superseded)

    def _commit(self, key: str, record: Record, done: Done[T]) -> None:
        self._live()
        self._commits += 1
        due = self._crash is not None and self._commits == self._crash.commit
        if due and self._crash and self._crash.when == "before":
            self._die()
        assert key not in self.kept.journal, f"step {key} was done twice"
        self.kept.journal[key] = record
        self.kept.usage.append(done.usage)
        self.kept.events.extend(done.events)
        for opening in done.opens:
            self.kept.starts[opening.key] = self._epoch
            self.kept.events.append(opening.event)
        if due:
            self._die()

    def _die(self) -> None:
        self._dead = True
        raise Crashed


async def _unreachable() -> Done[Answer]:
    raise AssertionError("a question is answered by a person")


def _replayed(step: Step[T], record: Record) -> T:
    assert record.digest == step.digest, f"step {step.key} was asked for something else before"
    if record.error is not None:
        raise recorded_failure(record.error.code, record.error.message)
    return step.result.validate_json(record.value)
