"""What was said between an agent and its model so far: frozen, and what each turn adds to it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

from posthouse.agents.decide import MAX_REPAIRS, REFUSAL, TurnState
from posthouse.agents.outside import NOTICE, marked
from posthouse.agents.stall import Action, PastTurn, Stall, Watch, past_call
from posthouse.agents.window import Older, fitted, older
from posthouse.errors import RunCode
from posthouse.journal.model import AgentAnswer, SourceRead
from posthouse.llm.messages import (
    AssistantMessage,
    Completion,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from posthouse.llm.outside import has_marks
from posthouse.tools.model import ToolAnswer

LAST_TURN = (
    "This is your last turn and no tool can be called any more. "
    "Write your final answer now, with what you have."
)
MISTAKEN = (
    "None of the calls of your last turns could be made as you wrote them. This is your last turn and no "
    "tool can be called any more. Write your final answer now, with what you have."
)

# The error of a tool call that the run's budget did not allow.
TOOL_REFUSED = "budget_exceeded"
SPENT = (
    "The limit of what may be spent on tools is reached. This is your last turn and no tool can be called any more. "
    "Write your final answer now, with what you have."
)


@dataclass(frozen=True)
class Answered:
    """A tool call with its answer; `step` is "" when it was not made, `reads` when it could change nothing."""

    call: ToolCall
    answer: ToolAnswer
    step: str = ""
    reads: bool = True

    @property
    def from_outside(self) -> bool:
        """Whether the answer may hold words of somebody else: neither ours nor about the model's own mistake."""
        return bool(self.step) and not (self.answer.trusted or self.answer.mistaken)

    @property
    def text(self) -> str:
        """The answer as the model reads it."""
        return self.answer.text if self.answer.trusted else marked(self.answer.text)


@dataclass(frozen=True)
class Conversation:
    """What the model is told before the turn at hand, its last text, the documents read.

    `messages` may be without older turns (window.py); the sources and the watch are of all turns. `outside` says
    whether the model has read text from outside, in its task or as the answer to a call.
    """

    messages: tuple[Message, ...]
    state: TurnState
    text: str = ""
    sources: tuple[SourceRead, ...] = ()
    watch: Watch = field(default_factory=Watch)
    outside: bool = False

    @classmethod
    def begin(cls, prompt: str, task: str, limit: int, *, tools: bool) -> Self:
        """Before the first turn, of an agent that has tools or none."""
        rules = f"{prompt}\n\n{NOTICE}" if tools else prompt
        messages = (SystemMessage(text=rules), UserMessage(text=task))
        return cls(messages, TurnState(1, limit), outside=has_marks(task))

    @property
    def stall(self) -> Stall | None:
        """The rung of the ladder that the last turn's calls led to."""
        return self.watch.stall

    def older(self, limit: int) -> Older | None:
        """What a summary may stand for when the messages take more than `limit` tokens."""
        return older(self.messages, limit)

    def summarised(self, past: Older, summary: str) -> Self:
        """With the summary in place of the older turns."""
        return replace(self, messages=past.replaced(summary))

    def fitted(self, limit: int) -> Self:
        """With messages of at most `limit` tokens, if they can be made so short."""
        return replace(self, messages=fitted(self.messages, limit).messages)

    def with_last_turn_notice(self) -> tuple[Message, ...]:
        """The messages, and that this turn is the last; who was stopped has been told so already."""
        if self.state.closing is not None:
            return self.messages
        return (*self.messages, UserMessage(text=LAST_TURN))

    def after_calls(self, completion: Completion, answered: Iterable[Answered]) -> Self:
        """Before the next turn: the model's calls and their answers, in the order of the calls."""
        answered = tuple(answered)
        said = AssistantMessage(text=completion.text, tool_calls=completion.tool_calls)
        told = [ToolMessage(call_id=a.call.id, text=a.text) for a in answered]
        if completion.rules:
            state, watch, notice = self._judged(answered)
        else:  # a replay must come to what a version without a ladder came to
            state = replace(self.state, turn=self.state.turn + 1)
            watch, notice = self.watch.unmoved(_past(answered)), ()
        return replace(
            self,
            messages=(*self.messages, said, *told, *notice),
            state=state,
            text=_last(completion.text, self.text),
            sources=_distinct((*self.sources, *_read(answered))),
            watch=watch,
            outside=self.outside or any(one.from_outside for one in answered),
        )

    def _judged(
        self, answered: tuple[Answered, ...]
    ) -> tuple[TurnState, Watch, tuple[Message, ...]]:
        """What the turn's calls say of the model: the state after them, and what it is told."""
        turn = _past(answered)
        state = replace(self.state, turn=self.state.turn + 1)
        if any(is_refused(one.answer) for one in answered):
            closed = replace(state, closing=RunCode.BUDGET_EXCEEDED)
            return closed, self.watch.unmoved(turn), (UserMessage(text=SPENT),)
        if turn.calls:
            state = replace(state, repairs=state.repairs + 1 if turn.mistaken else 0)
        if state.repairs > MAX_REPAIRS:
            closed = replace(state, closing=RunCode.INVALID_OUTPUT)
            return closed, self.watch.unmoved(turn), (UserMessage(text=MISTAKEN),)
        watch = self.watch.after(turn)
        if watch.stall is None:
            return state, watch, ()
        stopped = watch.stall.action is Action.STOPPED
        closing = RunCode.LOOP_DETECTED if stopped else None
        state = replace(state, blocked=watch.blocked, closing=closing)
        return state, watch, (UserMessage(text=watch.stall.message),)

    def with_more(self) -> Self:
        """When a person has given more after calls that the budget did not allow: the next turn is not the last."""
        return replace(self, messages=self.messages[:-1], state=replace(self.state, closing=None))

    def after_repair(self, completion: Completion, problem: str) -> Self:
        """Before the next turn: what was wrong with the answer."""
        # Some providers refuse an assistant message without content.
        said = (AssistantMessage(text=completion.text),) if completion.text.strip() else ()
        state, refused = self.state, completion.finish_reason == REFUSAL
        return replace(
            self,
            messages=(*self.messages, *said, UserMessage(text=problem)),
            state=replace(
                state,
                turn=state.turn + 1,
                repairs=state.repairs + 1,
                refusals=state.refusals + refused,
            ),
            text=self.text if refused else _last(completion.text, self.text),
        )

    def answer(self, text: str, stopped: RunCode | None = None, limit: str = "") -> AgentAnswer:
        """What the agent came to; stopped without a text, it is the last one that it wrote."""
        kept = _last(text, self.text) if stopped else text
        return AgentAnswer(kept, self.sources, self.state.turn, stopped, limit)


def is_refused(answer: ToolAnswer) -> bool:
    """Whether the budget kept the call from being made; what a tool itself says is not trusted with that."""
    return bool(answer.trusted and answer.problem and answer.problem.error == TOOL_REFUSED)


def _past(answered: Iterable[Answered]) -> PastTurn:
    calls = [
        past_call(
            one.call,
            one.answer.text,
            one.answer.problem.error if one.answer.problem else None,
            (source.address for source in one.answer.sources),
            reads=one.reads,
        )
        for one in answered
        if one.step
    ]
    return PastTurn(tuple(calls))


def _last(newer: str, older: str) -> str:
    return newer if newer.strip() else older


def _read(answered: Iterable[Answered]) -> list[SourceRead]:
    return [
        SourceRead(address=source.address, title=source.title, step=one.step)
        for one in answered
        for source in one.answer.sources
    ]


def _distinct(sources: Iterable[SourceRead]) -> tuple[SourceRead, ...]:
    first: dict[str, SourceRead] = {}
    for source in sources:
        first.setdefault(source.address, source)
    return tuple(first.values())
