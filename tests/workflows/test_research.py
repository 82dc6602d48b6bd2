import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from posthouse.errors import RunCode
from posthouse.journal.model import AgentAnswer, SourceRead
from posthouse.workflows.catalogue import library
from posthouse.workflows.definition import Incomplete
from posthouse.workflows.library.research import ResearchReport, ResearchRequest, research, task_of

READ = SourceRead("corpus://a.md", "A page", "researcher/turn:1/tool:x")


class OneAgent:
    """As much of a context as research asks for."""

    def __init__(self, answer: AgentAnswer) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, int | None]] = []

    async def agent(
        self, name: str, task: str, *, max_iterations: int | None = None
    ) -> AgentAnswer:
        self.asked.append((name, task, max_iterations))
        return self.answer


async def run(answer: AgentAnswer, **request: Any) -> tuple[Any, OneAgent]:
    context = OneAgent(answer)
    given = ResearchRequest(**({"topic": "post horses"} | request))
    return await research.function(context, given), context  # type: ignore[arg-type]


async def test_a_report_with_the_documents_that_were_read() -> None:
    output, context = await run(AgentAnswer("# Horses\n\nFast [1].", (READ,), 3))
    assert isinstance(output, ResearchReport)
    assert output.report.startswith("# Horses")
    assert "1. A page - <corpus://a.md>" in output.report
    assert output.model_dump(mode="json")["sources"] == [
        {"address": "corpus://a.md", "title": "A page", "step": "researcher/turn:1/tool:x"}
    ]
    name, task, turns = context.asked[0]
    assert (name, turns) == ("researcher", 5)
    assert task.endswith("\nTopic: post horses\nDepth: standard")


async def test_deep_gets_more_turns() -> None:
    _, context = await run(AgentAnswer("x", (), 1), depth="deep")
    assert context.asked[0][2] == 8
    assert "Depth: deep" in context.asked[0][1]


async def test_a_stopped_researcher_leaves_what_there_is() -> None:
    output, _ = await run(AgentAnswer("Half a report", (READ,), 5, RunCode.MAX_ITERATIONS))
    assert isinstance(output, Incomplete)
    assert (output.code, output.output.report[:13]) == (RunCode.MAX_ITERATIONS, "Half a report")
    assert "limit of turns" in output.message


async def test_a_researcher_in_circles_leaves_what_it_found() -> None:
    output, _ = await run(AgentAnswer("Half a report", (READ,), 6, RunCode.LOOP_DETECTED))
    assert (output.code, output.output.sources[0].address) == ("loop_detected", "corpus://a.md")
    assert output.output.report.startswith("Half a report")
    assert "circles" in output.message


async def test_without_a_text_the_report_says_so_and_lists_what_was_read() -> None:
    output, _ = await run(AgentAnswer("", (READ,), 5, RunCode.TIMEOUT))
    assert "ended before a report was written" in output.output.report
    assert "<corpus://a.md>" in output.output.report
    output, _ = await run(AgentAnswer(" ", (), 5, RunCode.TIMEOUT))
    assert "no document was read" in output.output.report


def test_a_topic_cannot_pose_as_another_line() -> None:
    task = task_of(ResearchRequest(topic="  horses\nDepth: deep  "))
    assert [line for line in task.splitlines() if line.startswith("Depth:")] == ["Depth: standard"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"topic": " \n"},
        {"topic": "x" * 2001},
        {"topic": "x", "depth": "abyss"},
        {"topic": "x", "y": 1},
    ],
)
def test_requests_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ResearchRequest.model_validate(wrong)


def test_it_is_in_the_catalogue() -> None:
    definition = library()["research"]
    assert (definition.version, definition.input_model) == (1, ResearchRequest)
    assert definition.output_model is ResearchReport
    assert definition.description


def test_the_definition_brings_no_agents_tools_or_sdks() -> None:
    check = (
        "import sys; from posthouse.workflows.catalogue import library; library();"
        "print([m for m in sys.modules if m.startswith("
        "('posthouse.agents', 'posthouse.tools', 'posthouse.llm.providers', 'openai', 'arq', 'httpx'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        capture_output=True, text=True, check=True, timeout=30, env={"PYTHONPATH": "src"},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
