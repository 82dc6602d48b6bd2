"""Step keys, outcomes, waits, and the step interface that agents and tools see; the engine implements it."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from posthouse.budget.model import Reservation, Verdict
from posthouse.errors import InvalidOutput, RunCode
from posthouse.events.types import Draft, MessageDelta
from posthouse.inputs.model import Answer, Question

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

MAX_FORM_CHARACTERS = 128 * 1024
_KEY = re.compile(r"[A-Za-z0-9_.:/-]{1,256}")


def checked_key(key: str) -> str:
    """The key itself, or ValueError when it holds anything but letters, digits and `_ . : / -`."""
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"step key {key[:80]!r} must be 1-256 of letters, digits and _ . : / -")
    return key


def digest_of(*parts: Any) -> str:
    """A short hash of what workflow code passes to a step; JSON-able values, pydantic models included."""
    text = orjson.dumps(parts, default=_plain, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(
        f"{type(value).__name__} cannot be hashed with a step; pass JSON values or models"
    )


class StepError(BaseModel):
    """Why a step failed, as it is recorded and raised again at replay."""

    model_config = ConfigDict(frozen=True)

    code: RunCode
    message: str


class Outcome(BaseModel):
    """What the journal holds under a step key. seq, epoch, time (ms) and ordinal are put in front by the script.

    Steps without events share a seq; then the ordinal says which was committed first. `by_model` is that part of the
    usage which models took, by `provider:model`.
    """

    model_config = ConfigDict(frozen=True)

    seq: int
    epoch: int
    time: int
    ordinal: int = 0
    digest: str = ""
    duration_ms: int = 0
    agent: str = ""
    result: Any = None
    error: StepError | None = None
    blob: str | None = None
    usage: dict[str, int] = {}
    by_model: dict[str, dict[str, int]] = {}


@dataclass(frozen=True)
class Usage:
    """What a step spent: calls, tokens, money; `wasted` in tries that failed, and not among the tokens."""

    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    nano_usd: int = 0
    unpriced_calls: int = 0
    wasted_tokens: int = 0
    wasted_nano_usd: int = 0

    def spent(self) -> dict[str, int]:
        """Only what is not zero, by field name."""
        return {name: value for name, value in vars(self).items() if value}

    def __add__(self, other: "Usage") -> "Usage":
        """Both together."""
        return Usage(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Opening:
    """That a step begins: its key, the event that says so, and the one for readers when a crash cut it before."""

    key: str
    event: Draft
    superseded: Draft | None = None


@dataclass(frozen=True)
class Done(Generic[T]):
    """What a step's work came to: its value, what it spent, what happened, and which steps begin with its commit.

    `by_model` is that part of the usage which models took, by `provider:model`.
    """

    value: T
    usage: Usage = field(default_factory=Usage)
    events: tuple[Draft, ...] = ()
    opens: tuple[Opening, ...] = ()
    by_model: Mapping[str, Usage] = field(default_factory=dict)


@dataclass(frozen=True)
class Intent(Generic[T]):
    """That a step changes the world: it is written down before the work begins.

    When a crash left it without an outcome, `doubt` is announced; then `instead` says what the step came to, or,
    when it is None, the work is done once more.
    """

    doubt: Draft
    instead: Callable[[], Awaitable[Done[T]]] | None = None


@dataclass(frozen=True)
class Step(Generic[T]):
    """One unit of work: it runs once, is committed, and is never run again.

    `digest` is a hash of what workflow code passed; "" when there is nothing to compare. `opening` is
    announced before the work unless an earlier commit has announced it already. `spent` is asked when the work has
    failed: what models took for it, by `provider:model`.
    """

    key: str
    work: Callable[[], Awaitable[Done[T]]]
    result: TypeAdapter[T]
    digest: str = ""
    agent: str = ""
    opening: Opening | None = None
    intent: Intent[T] | None = None
    spent: Callable[[], Mapping[str, Usage]] | None = None


def lost_by(step: Step[Any]) -> Done[None]:
    """What a step came to whose work failed: nothing but what it took."""
    by_model = step.spent() if step.spent else {}
    return Done(None, sum(by_model.values(), Usage()), by_model=by_model)


@dataclass(frozen=True)
class Wait:
    """What a parked step waits for; `after_ms` from the moment of parking, None for as long as it takes.

    When the time is up the sweep journals `outcome` (JSON text) under the key; "" only wakes the run. For a child
    it is the child's id.
    """

    key: str
    kind: Literal["timer", "model", "rate_limit", "version", "child", "input"]
    after_ms: int | None
    outcome: str = ""


@dataclass(eq=False)
class Parked(BaseException):
    """The run cannot go on until something happens; carries every wait of the slice to the engine."""

    waits: tuple[Wait, ...] = field(default=())


@dataclass(frozen=True)
class Prompt:
    """A prompt's name, version and text."""

    name: str
    version: int
    text: str


@dataclass(frozen=True)
class SourceRead:
    """A document that an agent really read, and the step that read it."""

    address: str
    title: str
    step: str


@dataclass(frozen=True)
class AgentAnswer:
    """What an agent came to; `stopped` is None when it answered by itself, else the code of the limit that ended it.

    `limit` is that of the budget, as in the event budget.exceeded, when it was the budget.
    """

    text: str
    sources: tuple[SourceRead, ...]
    turns: int
    stopped: RunCode | None = None
    limit: str = ""

    def read(self, model: type[M]) -> M:
        """The answer as the output model that was asked for.

        Raises InvalidOutput when it is none, as when a limit stopped the agent before.
        """
        none = InvalidOutput("The agent gave no answer in the form that was asked for.")
        # What is wrong with a longer one can take seconds to find; no agent's answer of a form is.
        if len(self.text) > MAX_FORM_CHARACTERS:
            raise none
        try:
            return model.model_validate_json(self.text)
        except ValidationError:
            raise none from None


class ChildEnd(BaseModel):
    """What became of a child run; `output` is None where there is none."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    status: str
    output: Any = None
    error: dict[str, Any] | None = None


class Steps(Protocol):
    """The journal as agents and tools see it."""

    @property
    def models(self) -> Mapping[str, tuple[str, ...]]:
        """The models that this run wants by tier; empty for those of the fleet."""
        ...

    @property
    def run_id(self) -> str:
        """The run that these steps belong to."""
        ...

    async def run(self, step: Step[T]) -> T:
        """The step's recorded value; or its work is done, committed and returned. Raises the recorded error."""
        ...

    async def pin(self, prompt: Prompt) -> Prompt:
        """The prompt that this run's tree is pinned to: the one given, unless another was pinned first."""
        ...

    def push(self, delta: MessageDelta, *, agent: str, step: str) -> None:
        """Sends a piece of text to whoever reads the run now; never waits, never fails."""
        ...

    def announce(self, draft: Draft) -> None:
        """Logs an event that belongs to no commit (a retry, say); never waits, never fails."""
        ...

    async def ask(self, question: Question) -> Answer:
        """What a person answered; until then the run waits without a worker.

        Raises InputExpired when nobody did in time and the question says so.
        """
        ...

    async def reserve(self, wanted: Reservation) -> Verdict:
        """Whether the budget allows a call that is about to be made under the step; its commit settles it."""
        ...

    async def extend(self, key: str, grown: Mapping[str, int]) -> None:
        """Raises limits of the budget, by name (tokens, nano_usd, ...), once for the key."""
        ...

    async def elapsed(self, key: str) -> float:
        """Seconds that work under `key` took in this run, restarts included, the time between them not."""
        ...
