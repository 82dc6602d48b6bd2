"""What a model wrote of the turns that its conversation has no room for, or why there is nothing of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from posthouse.agents.assignment import Assignment
from posthouse.agents.decide import OVER_BUDGET, REFUSAL, TIME_UP
from posthouse.budget.model import Reservation, Verdict
from posthouse.errors import RunCode
from posthouse.events.types import Draft, MessageDelta, MessageSuperseded
from posthouse.inputs.model import Answer as HumanAnswer
from posthouse.inputs.model import Question
from posthouse.journal.model import Prompt, Step, Steps
from posthouse.llm.messages import Completion

T = TypeVar("T")


class Summary(BaseModel):
    """The summary's text; without one, `failure` says why."""

    model_config = ConfigDict(frozen=True)

    text: str = ""
    failure: RunCode | None = None


SUMMARY: TypeAdapter[Summary] = TypeAdapter(Summary)


def summary_in(completion: Completion) -> Summary:
    """The summary that a model was asked for."""
    if completion.finish_reason == TIME_UP:
        return Summary(failure=RunCode.TIMEOUT)
    if completion.finish_reason == OVER_BUDGET:
        return Summary(failure=RunCode.BUDGET_EXCEEDED)
    if completion.finish_reason == REFUSAL:
        return Summary(failure=RunCode.CONTENT_REFUSED)
    text = completion.text.strip()
    return Summary(text=text) if text else Summary(failure=RunCode.INVALID_OUTPUT)


def unheard(job: Assignment) -> Assignment:
    """The same work, but nobody reads along: what is written is no answer."""
    return replace(job, steps=_Unheard(job.steps))


class _Unheard:
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    @property
    def run_id(self) -> str:
        return self._steps.run_id

    async def run(self, step: Step[T]) -> T:
        return await self._steps.run(step)

    async def pin(self, prompt: Prompt) -> Prompt:
        return await self._steps.pin(prompt)

    def push(self, delta: MessageDelta, *, agent: str, step: str) -> None:
        """Sends nothing."""

    def announce(self, draft: Draft) -> None:
        # No reader has a text that could be void.
        if not isinstance(draft.event, MessageSuperseded):
            self._steps.announce(draft)

    @property
    def models(self) -> Mapping[str, tuple[str, ...]]:
        return self._steps.models

    async def ask(self, question: Question) -> HumanAnswer:
        return await self._steps.ask(question)

    async def reserve(self, wanted: Reservation) -> Verdict:
        return await self._steps.reserve(wanted)

    async def extend(self, key: str, grown: Mapping[str, int]) -> None:
        await self._steps.extend(key, grown)

    async def elapsed(self, key: str) -> float:
        return await self._steps.elapsed(key)
