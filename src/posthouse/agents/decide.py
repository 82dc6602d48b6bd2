"""What comes after a model's answer: a pure decision.

Three turns in a row that are of no use end an agent. A turn of which every call is the model's own mistake
(an unknown tool, arguments that do not fit), an empty, cut or misformed answer: each is a repair, of which
there are MAX_REPAIRS in a row. When no call of three turns succeeded, and not every one was such a mistake,
it is a stall (`failing_calls`, stall.py). Any other turn of calls begins the count anew.
"""

from dataclasses import dataclass
from typing import TypeAlias

from posthouse.agents.form import Form
from posthouse.agents.stall import fingerprint
from posthouse.errors import RunCode
from posthouse.llm.messages import Completion, ToolCall

MAX_CALLS = 16
MAX_REPAIRS = 2

# The finish reason of a turn that the agent's own clock ended; providers know no such reason.
TIME_UP = "time_up"
REFUSAL = "refusal"
# That of a turn whose request the run's budget did not allow.
OVER_BUDGET = "budget_exceeded"

_FILTERED = "content_filter"
_CUT = "length"

EMPTY_ANSWER = "Your last answer was empty. Call a tool, or write your answer."
CUT_ANSWER = (
    "Your last answer was cut at the output limit. Write it again from its beginning, shorter, "
    "so that it is complete."
)
REFUSED_ANSWER = (
    "Your last answer was a refusal. Do the part of the task that you can do, and say plainly in your "
    "answer what you cannot do."
)


@dataclass(frozen=True)
class TurnState:
    """Where the agent is: this turn (from 1), the last one allowed, the repairs in a row so far.

    `blocked` are the fingerprints of calls that are not made any more. `closing` is why the agent was
    stopped before this turn, which is then its last.
    """

    turn: int
    limit: int
    repairs: int = 0
    refusals: int = 0
    blocked: frozenset[str] = frozenset()
    closing: RunCode | None = None

    @property
    def last(self) -> bool:
        """Whether no turn may follow this one."""
        return self.turn >= self.limit or self.closing is not None


@dataclass(frozen=True)
class FinalAnswer:
    """The model answered."""

    text: str


@dataclass(frozen=True)
class CallTools:
    """The model wants tools: `calls` are made, `surplus` and `blocked` answered without being made."""

    calls: tuple[ToolCall, ...]
    surplus: tuple[ToolCall, ...] = ()
    blocked: tuple[ToolCall, ...] = ()


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
class Overspent:
    """The budget's limit is reached; `text` is what the model wrote in its last turn, if it had one."""

    text: str
    limit: str


@dataclass(frozen=True)
class Stalled:
    """The turn after the ladder's end; `text` is what the model wrote of what it had found."""

    text: str


@dataclass(frozen=True)
class Unusable:
    """The answer is still of no use after every repair; `text` is what there is of it."""

    text: str


@dataclass(frozen=True)
class Refused:
    """The model declined to answer."""


NextStep: TypeAlias = (
    FinalAnswer | CallTools | Repair | TurnLimit | TimeUp | Overspent | Stalled | Unusable | Refused
)


def decide(completion: Completion, state: TurnState, form: Form | None = None) -> NextStep:
    """What to do after this answer. After the last turn it is never CallTools or Repair."""
    if completion.finish_reason == OVER_BUDGET:
        return Overspent(completion.text, completion.limit)
    if state.closing is not None:
        return _closed(completion, state.closing, form)
    if completion.finish_reason == TIME_UP:
        return TimeUp(completion.text)
    if completion.finish_reason in (_FILTERED, REFUSAL):
        return _refused(completion, state)
    if completion.tool_calls and not state.last:
        return _calls(completion.tool_calls, state.blocked)
    text, problem = _read(completion, form)
    if state.last and (problem or completion.tool_calls):
        return TurnLimit(text)
    if not problem:
        return FinalAnswer(text)
    return Repair(problem) if state.repairs < MAX_REPAIRS else Unusable(text)


def _closed(completion: Completion, closing: RunCode, form: Form | None) -> NextStep:
    refused = completion.finish_reason in (_FILTERED, REFUSAL)
    text = "" if refused else _read(completion, form)[0]
    match closing:
        case RunCode.LOOP_DETECTED:
            return Stalled(text)
        case RunCode.BUDGET_EXCEEDED:
            # Only tools are refused while models may still be asked.
            return Overspent(text, "tool_calls")
        case _:
            return Unusable(text)


def _refused(completion: Completion, state: TurnState) -> NextStep:
    final = state.last or state.refusals > 0 or state.repairs >= MAX_REPAIRS
    if final or completion.finish_reason == _FILTERED:
        return Refused()
    return Repair(REFUSED_ANSWER)


def _calls(asked: tuple[ToolCall, ...], blocked: frozenset[str]) -> CallTools:
    barred = [bool(blocked) and fingerprint(call) in blocked for call in asked]
    free = tuple(call for call, bar in zip(asked, barred, strict=True) if not bar)
    held = tuple(call for call, bar in zip(asked, barred, strict=True) if bar)
    return CallTools(free[:MAX_CALLS], free[MAX_CALLS:], held)


def _read(completion: Completion, form: Form | None) -> tuple[str, str]:
    """The answer's text, and what is wrong with it, or ""."""
    text = completion.text
    if completion.finish_reason == _CUT:
        return text, CUT_ANSWER
    if not text.strip():
        return text, EMPTY_ANSWER
    return form.read(text) if form else (text, "")
