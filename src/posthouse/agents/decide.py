"""What comes after a model's answer: a pure decision."""

from dataclasses import dataclass
from typing import TypeAlias

from posthouse.llm.messages import Completion, ToolCall

MAX_CALLS = 16
MAX_REPAIRS = 2

# The finish reason of a turn that the agent's own clock ended; providers know no such reason.
TIME_UP = "time_up"

_REFUSALS = frozenset({"content_filter", "refusal"})
_CUT = "length"

EMPTY_ANSWER = "Your last answer was empty. Call a tool, or write your answer."
CUT_ANSWER = (
    "Your last answer was cut at the output limit. Write it again from its beginning, shorter, "
    "so that it is complete."
)


@dataclass(frozen=True)
class TurnState:
    """Where the agent is: this turn (from 1), the last one allowed, the repairs so far."""

    turn: int
    limit: int
    repairs: int = 0

    @property
    def last(self) -> bool:
        """Whether no turn may follow this one."""
        return self.turn >= self.limit


@dataclass(frozen=True)
class FinalAnswer:
    """The model answered."""

    text: str


@dataclass(frozen=True)
class CallTools:
    """The model wants tools: `calls` are made, `surplus` is answered without being made."""

    calls: tuple[ToolCall, ...]
    surplus: tuple[ToolCall, ...]


@dataclass(frozen=True)
class Repair:
    """The answer is of no use; the model is told why and asked again."""

    problem: str


@dataclass(frozen=True)
class TurnLimit:
    """The last turn brought no whole answer; `text` is what the model wrote in it."""

    text: str


@dataclass(frozen=True)
class TimeUp:
    """The agent's time was up before the model had answered; `text` is what it had written."""

    text: str


@dataclass(frozen=True)
class Unusable:
    """The answer is still of no use after every repair; `text` is what there is of it."""

    text: str


@dataclass(frozen=True)
class Refused:
    """The model declined to answer."""


NextStep: TypeAlias = FinalAnswer | CallTools | Repair | TurnLimit | TimeUp | Unusable | Refused


def decide(completion: Completion, state: TurnState) -> NextStep:
    """What to do after this answer. After the last turn it is never CallTools or Repair."""
    if completion.finish_reason == TIME_UP:
        return TimeUp(completion.text)
    if completion.finish_reason in _REFUSALS:
        return Refused()
    if completion.tool_calls and not state.last:
        calls = completion.tool_calls
        return CallTools(calls[:MAX_CALLS], calls[MAX_CALLS:])
    problem = _problem(completion)
    if state.last and (problem or completion.tool_calls):
        return TurnLimit(completion.text)
    if not problem:
        return FinalAnswer(completion.text)
    return Repair(problem) if state.repairs < MAX_REPAIRS else Unusable(completion.text)


def _problem(completion: Completion) -> str:
    if not completion.text.strip():
        return EMPTY_ANSWER
    return CUT_ANSWER if completion.finish_reason == _CUT else ""
