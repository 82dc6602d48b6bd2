"""What was said between an agent and its model so far: frozen, and what each turn adds to it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from posthouse.agents.decide import TurnState
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
from posthouse.tools.model import ToolAnswer

LAST_TURN = (
    "This is your last turn and no tool can be called any more. "
    "Write your final answer now, with what you have."
)


@dataclass(frozen=True)
class Answered:
    """A tool call with its answer; `step` is "" when it was not made."""

    call: ToolCall
    step: str
    answer: ToolAnswer


@dataclass(frozen=True)
class Conversation:
    """The messages before the turn at hand, the last text of the model, the documents read."""

    messages: tuple[Message, ...]
    state: TurnState
    text: str = ""
    sources: tuple[SourceRead, ...] = ()

    @classmethod
    def begin(cls, prompt: str, task: str, limit: int) -> Self:
        """Before the first turn."""
        return cls((SystemMessage(text=prompt), UserMessage(text=task)), TurnState(1, limit))

    def with_last_turn_notice(self) -> tuple[Message, ...]:
        """The messages, and that this turn is the last."""
        return (*self.messages, UserMessage(text=LAST_TURN))

    def after_calls(self, completion: Completion, answered: Iterable[Answered]) -> Self:
        """Before the next turn: the model's calls and their answers, in the order of the calls."""
        answered = tuple(answered)
        said = AssistantMessage(text=completion.text, tool_calls=completion.tool_calls)
        told = [ToolMessage(call_id=a.call.id, text=a.answer.text) for a in answered]
        return replace(
            self,
            messages=(*self.messages, said, *told),
            state=replace(self.state, turn=self.state.turn + 1),
            text=_last(completion.text, self.text),
            sources=_distinct((*self.sources, *_read(answered))),
        )

    def after_repair(self, completion: Completion, problem: str) -> Self:
        """Before the next turn: what was wrong with the answer."""
        # Some providers refuse an assistant message without content.
        said = (AssistantMessage(text=completion.text),) if completion.text.strip() else ()
        state = self.state
        return replace(
            self,
            messages=(*self.messages, *said, UserMessage(text=problem)),
            state=replace(state, turn=state.turn + 1, repairs=state.repairs + 1),
            text=_last(completion.text, self.text),
        )

    def answer(self, text: str, stopped: RunCode | None = None) -> AgentAnswer:
        """What the agent came to; stopped without a text, it is the last one that it wrote."""
        kept = _last(text, self.text) if stopped else text
        return AgentAnswer(kept, self.sources, self.state.turn, stopped)


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
