"""One agent's work in one run: its steps' names, its events, the time that it has left."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from posthouse.agents.form import Form
from posthouse.agents.spec import Agent
from posthouse.agents.stall import Stall
from posthouse.events.types import (
    Draft,
    Event,
    MessageSuperseded,
    StallDetected,
    ToolStarted,
    TurnStarted,
    head,
)
from posthouse.journal.model import Done, Opening, Step, Steps
from posthouse.llm.messages import ToolCall
from posthouse.llm.router import Wanted

NAME_LIMIT = 64

_NOTHING: TypeAdapter[None] = TypeAdapter(None)


@dataclass(frozen=True)
class Assignment:
    """What stays the same through all turns. `deadline` is in seconds on the clock `now`.

    `form` is what the answer must look like, None for any text; `wanted` is what models may be asked, of which `model`
    is the first.
    """

    steps: Steps
    agent: Agent
    key: str
    digest: str
    model: str
    now: Callable[[], float]
    deadline: float
    form: Form | None = None
    wanted: Wanted = field(default_factory=Wanted)

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.agent.spec.name

    def remaining(self) -> float:
        """Seconds that the agent has left; never below zero."""
        return max(0.0, self.deadline - self.now())

    def turn_key(self, turn: int) -> str:
        """The step key of a model request."""
        return f"{self.key}/turn:{turn}"

    def call_key(self, turn: int, call: ToolCall) -> str:
        """The step key of a tool call."""
        return f"{self.turn_key(turn)}/tool:{call.id}"

    def draft(self, event: Event, step: str) -> Draft:
        """The event as this agent's, in this step."""
        return Draft(event=event, agent=self.name, step=step)

    def turn_opening(self, turn: int) -> Opening:
        """That a turn begins; text that was streamed before a crash is void then."""
        step = self.turn_key(turn)
        return Opening(
            key=step,
            event=self.draft(TurnStarted(iteration=turn, model=self.model), step),
            superseded=self.draft(MessageSuperseded(), step),
        )

    def call_opening(self, turn: int, call: ToolCall) -> Opening:
        """That a tool call begins."""
        step = self.call_key(turn, call)
        event = ToolStarted(tool=shown_name(call), call_id=call.id, arguments=head(call.arguments))
        return Opening(key=step, event=self.draft(event, step))

    def stall_step(self, turn: int, stall: Stall) -> Step[None]:
        """Says once, whatever dies, that the turn led up the ladder; the next turn begins with it."""
        key = f"{self.turn_key(turn)}/stall"
        event = StallDetected(pattern=stall.pattern, action=stall.action)

        async def work() -> Done[None]:
            opens = (self.turn_opening(turn + 1),)
            return Done(None, events=(self.draft(event, key),), opens=opens)

        return Step(key, work, _NOTHING, agent=self.name)


def shown_name(call: ToolCall) -> str:
    """The called tool's name as the model wrote it, at most 64 characters."""
    return call.name[:NAME_LIMIT]
