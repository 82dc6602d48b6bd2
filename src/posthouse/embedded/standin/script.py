"""What the stand-in is told: faults and fixed answers for the next requests, and its pace."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from posthouse.embedded.standin.planning import PlanFault

_REMEMBERED = 10_000


class _Behaviour(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    times: int = Field(default=1, ge=0)


class Status(_Behaviour):
    """An error answer; `retry_after` in seconds."""

    type: Literal["status"]
    status: int = Field(ge=400, le=599)
    retry_after: float | None = Field(default=None, ge=0)
    code: str | None = None
    message: str | None = None


class Truncate(_Behaviour):
    """The answer ends properly on the wire, but without a finish reason."""

    type: Literal["truncate"]
    after_chunks: int = Field(default=1, ge=0)


class Corrupt(_Behaviour):
    """A chunk that is no JSON comes in the middle of the answer."""

    type: Literal["corrupt"]
    after_chunks: int = Field(default=1, ge=0)


class Disconnect(_Behaviour):
    """The connection breaks in the middle of the answer."""

    type: Literal["disconnect"]
    after_chunks: int = Field(default=1, ge=0)


class Delay(_Behaviour):
    """The answer starts so many seconds later."""

    type: Literal["delay"]
    seconds: float = Field(ge=0, le=3600)


class Hold(_Behaviour):
    """The answer waits after its first piece until the name is released."""

    type: Literal["hold"]
    name: str = Field(min_length=1)


class Loop(_Behaviour):
    """One more search with a new query, whatever is offered."""

    type: Literal["loop"]


class Say(_Behaviour):
    """Exactly this text."""

    type: Literal["reply"]
    text: str


class ToldCall(BaseModel):
    """One tool call to make; `arguments` may be any text, also such as is no JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: str = "{}"

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return orjson.dumps(value).decode() if isinstance(value, dict | list) else value


class CallTools(_Behaviour):
    """Exactly these tool calls."""

    type: Literal["tool_calls"]
    calls: tuple[ToldCall, ...] = Field(min_length=1)


class FaultyPlan(_Behaviour):
    """Where a plan is asked for, one with this fault; anything else is answered as always."""

    type: Literal["plan"]
    fault: PlanFault


class Refuse(_Behaviour):
    """A refusal."""

    type: Literal["refuse"]
    text: str = "I can't help with that."


Behaviour: TypeAlias = Annotated[
    Status
    | Truncate
    | Corrupt
    | Disconnect
    | Delay
    | Hold
    | Loop
    | Say
    | CallTools
    | FaultyPlan
    | Refuse,
    Field(discriminator="type"),
]


@dataclass
class Record:
    """One chat request as it is told to whoever asks; `finished` once the whole answer was sent."""

    n: int
    model: str | None = None
    fingerprint: str | None = None
    stream: bool = False
    status: int | None = None
    finished: bool = False
    behaviour: str | None = None
    held: bool = False


@dataclass(frozen=True)
class Pace:
    """How slow the answers are, in milliseconds: until the first piece, and between pieces."""

    latency_ms: float = 0
    token_ms: float = 0


class Script:
    """What the next requests get, and what the past ones were."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._first_pace = pace
        self._behaviours: deque[tuple[Behaviour, int]] = deque()
        self._gates: dict[str, asyncio.Event] = {}
        self._records: deque[Record] = deque(maxlen=_REMEMBERED)
        self._count = 0

    @property
    def records(self) -> tuple[Record, ...]:
        """The requests so far, oldest first; of very many only the last ten thousand."""
        return tuple(self._records)

    def tell(self, behaviours: tuple[Behaviour, ...]) -> None:
        """These behaviours are next, instead of what was left; what they hold is shut again."""
        self._behaviours = deque((b, b.times) for b in behaviours)
        for behaviour in behaviours:
            if isinstance(behaviour, Hold):
                self._shut(behaviour.name)

    def next_behaviour(self) -> Behaviour | None:
        """What the request that is here now gets; None for a normal answer."""
        if not self._behaviours:
            return None
        behaviour, left = self._behaviours[0]
        if left == 1:
            self._behaviours.popleft()
        elif left > 1:
            self._behaviours[0] = (behaviour, left - 1)
        return behaviour

    def received(self) -> Record:
        """The record of the request that has just come."""
        self._count += 1
        record = Record(n=self._count)
        self._records.append(record)
        return record

    def gate(self, name: str) -> asyncio.Event:
        """What an answer that is held by this name waits for."""
        return self._gates.setdefault(name, asyncio.Event())

    def release(self, name: str) -> None:
        """Lets everything go that is held by this name, also what comes to be held by it later."""
        self.gate(name).set()

    def reset(self) -> None:
        """As it was at the start: nothing told or remembered, and what was held let go."""
        for gate in self._gates.values():
            gate.set()
        self.pace = self._first_pace
        self._behaviours.clear()
        self._gates.clear()
        self._records.clear()
        self._count = 0

    def _shut(self, name: str) -> None:
        if self.gate(name).is_set():
            self._gates[name] = asyncio.Event()
