"""Research: an agent searches, reads, checks, and writes a report that cites what it read."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from posthouse.budget.model import words_for
from posthouse.errors import RunCode
from posthouse.journal.model import AgentAnswer
from posthouse.workflows.citations import with_sources
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Incomplete, workflow

_TURNS = {"standard": 5, "deep": 8}

_STOPPED = {
    RunCode.MAX_ITERATIONS: "The researcher reached its limit of turns before it had finished.",
    RunCode.TIMEOUT: "The researcher's time was up before it had finished.",
    RunCode.LOOP_DETECTED: "The researcher went in circles and was stopped before it had finished.",
    RunCode.INVALID_OUTPUT: "The researcher's model gave nothing of use, also after it was told so.",
}


class ResearchRequest(BaseModel):
    """What to find out, and how far to go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
    depth: Literal["standard", "deep"] = "standard"


class ResearchSource(BaseModel):
    """A document that was really read, and the step that read it."""

    model_config = ConfigDict(frozen=True)

    address: str
    title: str
    step: str


class ResearchReport(BaseModel):
    """The report in Markdown, and every document that was read for it."""

    model_config = ConfigDict(frozen=True)

    report: str
    sources: tuple[ResearchSource, ...]


@workflow("research", version=1)
async def research(
    ctx: RunContext, request: ResearchRequest
) -> ResearchReport | Incomplete[ResearchReport]:
    """Searches, reads and cross-checks sources on a topic, and writes a report that cites them."""
    answer = await ctx.agent("researcher", task_of(request), max_iterations=_TURNS[request.depth])
    report = report_of(request, answer)
    if answer.stopped is None:
        return report
    if answer.stopped is RunCode.BUDGET_EXCEEDED:
        return Incomplete(report, answer.stopped, words_for(answer.limit))
    message = _STOPPED.get(answer.stopped, "The researcher was stopped before it had finished.")
    return Incomplete(report, answer.stopped, message)


def task_of(request: ResearchRequest) -> str:
    """The task as the researcher reads it; the topic on one line, as it must not pose as others."""
    topic = " ".join(request.topic.split())
    lines = ("Research the topic below and write a report on it.", "", f"Topic: {topic}")
    return "\n".join((*lines, f"Depth: {request.depth}"))


def report_of(request: ResearchRequest, answer: AgentAnswer) -> ResearchReport:
    """The report with its sources; where there is no text, it says so and lists what was read."""
    topic = " ".join(request.topic.split())
    text = answer.text.strip() or f"# {topic}\n\nThe research ended before a report was written."
    sources = tuple(ResearchSource(**vars(source)) for source in answer.sources)
    return ResearchReport(report=with_sources(text, answer.sources), sources=sources)
