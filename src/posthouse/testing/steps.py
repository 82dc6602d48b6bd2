"""The journal in memory, with crashes to order, for tests of agents and tools."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from posthouse import clock
from posthouse.errors import RunFailed
from posthouse.events.types import Draft, MessageDelta
from posthouse.journal.model import Done, Prompt, Step, StepError, Usage, checked_key

T = TypeVar("T")


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
            self._commit(step.key, Record(digest=step.digest, error=error), Done(None))
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

    async def elapsed(self, key: str) -> float:
        """Seconds since the first call with this key."""
        self._live()
        return self._now() - self.kept.clocks.setdefault(checked_key(key), self._now())

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


def _replayed(step: Step[T], record: Record) -> T:
    assert record.digest == step.digest, f"step {step.key} was asked for something else before"
    if record.error is not None:
        raise RunFailed(record.error.message, code=record.error.code)
    return step.result.validate_json(record.value)
