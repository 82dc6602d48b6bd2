"""Agent: one agent does one task; what a subtask of a plan runs as."""

from pydantic import BaseModel, ConfigDict

from posthouse.budget.model import words_for
from posthouse.errors import RunCode
from posthouse.journal.model import SourceRead
from posthouse.workflows.context import RunContext
from posthouse.workflows.dag import AgentTask
from posthouse.workflows.definition import Incomplete, workflow

_STOPPED = {
    RunCode.MAX_ITERATIONS: "reached its limit of turns",
    RunCode.TIMEOUT: "ran out of time",
    RunCode.LOOP_DETECTED: "went in circles",
    RunCode.INVALID_OUTPUT: "got nothing of use from its model",
}


class AgentReport(BaseModel):
    """What the agent says, every document that it really read, its turns, and the code of what stopped it, if any."""

    model_config = ConfigDict(frozen=True)

    text: str
    sources: tuple[SourceRead, ...]
    turns: int
    stopped: RunCode | None = None


@workflow("agent", version=1)
async def agent(ctx: RunContext, request: AgentTask) -> AgentReport | Incomplete[AgentReport]:
    """Lets one agent work on one task."""
    answer = await ctx.agent(request.agent, request.task, max_iterations=request.max_iterations)
    report = AgentReport(
        text=answer.text, sources=answer.sources, turns=answer.turns, stopped=answer.stopped
    )
    if answer.stopped is None:
        return report
    if answer.stopped is RunCode.BUDGET_EXCEEDED:
        return Incomplete(report, answer.stopped, words_for(answer.limit))
    how = _STOPPED.get(answer.stopped, "was stopped")
    message = f"The agent {request.agent!r} {how} before it had finished."
    return Incomplete(report, answer.stopped, message)
