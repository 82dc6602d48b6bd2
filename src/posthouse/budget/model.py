"""What a run may spend, what a call would take, and whether it may be made. Money in nano-USD."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

NANO = 1_000_000_000
WARN_PERCENT = 80

What: TypeAlias = Literal["tokens", "nano_usd", "model_calls", "tool_calls", "seconds", "price"]
# Names of what is added up, in the order in which a reservation stores them.
SUMS = ("tokens", "nano_usd", "model_calls", "tool_calls")


class OnExceeded(StrEnum):
    """What follows when a limit is reached."""

    INCOMPLETE = "incomplete"
    FAIL = "fail"
    ASK = "ask"


class More(BaseModel):
    """Amounts by which limits of a run grow. `usd` is in dollars, `seconds` in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    usd: float | None = Field(None, ge=0.000001, le=1_000_000, strict=True)
    tokens: int | None = Field(None, ge=1, le=10**12, strict=True)
    model_calls: int | None = Field(None, ge=1, le=10**9, strict=True)
    tool_calls: int | None = Field(None, ge=1, le=10**9, strict=True)
    seconds: float | None = Field(None, ge=0.001, le=31_536_000, strict=True)

    def amounts(self) -> dict[str, int]:
        """Those that are given, in whole numbers, by the names that they are stored under."""
        amounts = {
            "nano_usd": None if self.usd is None else round(self.usd * NANO),
            "tokens": self.tokens,
            "model_calls": self.model_calls,
            "tool_calls": self.tool_calls,
            "ms": None if self.seconds is None else round(self.seconds * 1000),
        }
        return {name: amount for name, amount in amounts.items() if amount is not None}


class Budget(More):
    """The limits of a run and everything below it; None is no limit.

    `usd` is in dollars, `seconds` in seconds.
    """

    on_exceeded: OnExceeded = OnExceeded.INCOMPLETE

    def rows(self) -> list[tuple[str, str | int]]:
        """As it is stored; none when nothing is limited."""
        limits = self._limits()
        return [*limits, ("on_exceeded", self.on_exceeded.value)] if limits else []

    def changes(self) -> list[tuple[str, str | int]]:
        """What of it was said, to be stored over what there is."""
        said = "on_exceeded" in self.model_fields_set
        return [*self._limits(), *([("on_exceeded", self.on_exceeded.value)] if said else [])]

    def _limits(self) -> list[tuple[str, str | int]]:
        return [(f"limit_{name}", amount) for name, amount in self.amounts().items()]


@dataclass(frozen=True)
class Reservation:
    """The worst that a call may take. Prices None when they are not known.

    A model call gets between `least` and `most` output tokens, as many as the rest of the budget buys. What earlier
    tries of the step wasted stays reserved with it; without a call it is all that stays reserved.
    """

    step: str
    input_tokens: int = 0
    most: int = 0
    least: int = 0
    input_nano_usd: int | None = None
    thousand_output_nano_usd: int | None = None
    model_calls: int = 0
    tool_calls: int = 0
    wasted_tokens: int = 0
    wasted_nano_usd: int = 0


@dataclass(frozen=True)
class Granted:
    """The call may be made, with at most so many output tokens (None: as many as it likes)."""

    output_tokens: int | None
    percent: int = 0


@dataclass(frozen=True)
class Refused:
    """The call may not be made: that limit is reached."""

    what: str
    percent: int = 100
    action: OnExceeded = OnExceeded.INCOMPLETE


@dataclass(frozen=True)
class Busy:
    """There is room, but calls in flight hold it; when they have ended there may be more."""


Verdict: TypeAlias = Granted | Refused

_SPENT = "What is left of the budget is too little for the next call"
_WORDS: Mapping[str, str] = {
    "tokens": f"{_SPENT}: its tokens.",
    "nano_usd": f"{_SPENT}: its money.",
    "model_calls": f"{_SPENT}: its model calls.",
    "tool_calls": f"{_SPENT}: its tool calls.",
    "seconds": "The run has worked for as long as it may.",
    "price": "The run has a limit in USD, and no model that it may ask has a known price.",
}


def words_for(what: str) -> str:
    """In words, which limit stopped a run."""
    return _WORDS.get(what, f"{_SPENT}.")


@dataclass(frozen=True)
class BudgetState:
    """A budget as it stands, in whole numbers by name; `ms` is time, of which nothing is reserved.

    `lost` is what was reserved for calls of which nobody knows what they took; it counts as spent.
    """

    limits: Mapping[str, int]
    spent: Mapping[str, int]
    reserved: Mapping[str, int]
    lost: Mapping[str, int] = field(default_factory=dict)
    on_exceeded: OnExceeded = OnExceeded.INCOMPLETE

    @property
    def left(self) -> dict[str, int]:
        """Of each limit what is neither spent nor reserved; never below zero."""
        taken = {name: self.spent.get(name, 0) + self.reserved.get(name, 0) for name in self.limits}
        return {name: max(0, limit - taken[name]) for name, limit in self.limits.items()}

    @property
    def percent(self) -> int:
        """How much of the nearest limit is spent."""
        return max(
            (self.spent.get(name, 0) * 100 // max(1, limit) for name, limit in self.limits.items()),
            default=0,
        )
