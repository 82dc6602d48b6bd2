"""What a household is that goes through a storm: a tree of runs and questions, with an exact output."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from tests.chaos.recorders import Order, said_of, value_of

BUDGET = {"tokens": 1_000_000, "model_calls": 10_000}
# What an outing may spend: it asks for more before its last model call, or before one that a fault made the last.
PURSE = {"tokens": 1_000_000, "model_calls": 3, "on_exceeded": "ask"}
MORE = {"model_calls": 100}


@dataclass(frozen=True)
class Household:
    """A household as it is submitted; the fields are those of its input. A deep one has another one in it."""

    workflow: ClassVar[str] = "household"

    seed: int
    rooms: int = 3
    pace_ms: int = 50
    asks: bool = True
    deep: bool = True

    def room(self, number: int) -> "Errand":
        """What is done in one of its rooms, by a child run."""
        seed = self.seed * 10 + number
        if self.deep and number == self.rooms - 1:
            return Household(seed, rooms=2, pace_ms=self.pace_ms, deep=False)
        return Order(seed, legs=1, width=2, pace_ms=self.pace_ms, nap_ms=0, agent=number == 0)

    @property
    def children(self) -> list["Errand"]:
        """All of its rooms."""
        return [self.room(number) for number in range(self.rooms)]

    @property
    def way(self) -> str:
        """What a person has to say when it asks for its way."""
        return value_of(self.seed, "way")

    @property
    def said(self) -> list[str]:
        """What its own agents say."""
        return []

    @property
    def steps(self) -> int:
        """How many steps are journalled when it is done."""
        return 2 + 2 * self.rooms + self.asks

    @property
    def width(self) -> int:
        """How many of its own steps are executed at a time."""
        return 1

    @property
    def agents(self) -> int:
        """How many agents work in it."""
        return sum(child.agents for child in self.children)

    @property
    def output(self) -> dict[str, object]:
        """What it must come to, worked out without the service."""
        found = [value_of(self.seed, "knock")]
        found += [str(child.output["checksum"]) for child in self.children]
        found += [self.way] if self.asks else []
        found += self.said
        found.append(value_of(self.seed, "lock"))
        checksum = hashlib.sha256("\n".join(found).encode()).hexdigest()
        return {"checksum": checksum, "steps": len(found)}


@dataclass(frozen=True)
class Outing(Household):
    """A household that does one thing after another, and at last lets an agent work for which it needs more budget."""

    workflow: ClassVar[str] = "outing"

    rooms: int = 2
    deep: bool = False

    @property
    def steps(self) -> int:
        """With the agent's two turns, its tool call, and the question for more."""
        return super().steps + 4

    @property
    def agents(self) -> int:
        """With its own."""
        return super().agents + 1

    @property
    def said(self) -> list[str]:
        """What its agent says."""
        return [said_of(self.seed)]


Errand: TypeAlias = Order | Household


def question_of(seed: int) -> str:
    """How a household asks for its way."""
    return f"Which way, {seed}?"


def way_of(question: str) -> str:
    """What is to be answered."""
    return Household(int(question.removeprefix("Which way, ").removesuffix("?"))).way
