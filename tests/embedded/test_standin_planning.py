"""The stand-in as a planner: a sound plan for any goal, and unsound ones when it is told so."""

import json
from typing import get_args

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from posthouse.agents.form import form_of
from posthouse.embedded.standin.decide import AsJson, Ask, Text, decide, told_plan
from posthouse.embedded.standin.planning import PlanFault
from posthouse.embedded.standin.serve import serve_standin
from posthouse.llm.messages import AssistantMessage, Message, SystemMessage, UserMessage
from posthouse.workflows.graph import Caps
from posthouse.workflows.orchestration import planner_task
from posthouse.workflows.plan import Plan, levels, plan_model

AGENTS = ("analyst", "clerk", "researcher", "writer")
CAPS = Caps()
FORM = form_of(plan_model(AGENTS))
GOAL = "Compare leases and fencing tokens: how do they keep a run safe?"


def messages(goal: str = GOAL) -> tuple[Message, ...]:
    task = planner_task(goal, dict.fromkeys(AGENTS, "Works."), CAPS)
    return (SystemMessage(text="You plan."), UserMessage(text=task))


def planned(goal: str = GOAL, agents: tuple[str, ...] = AGENTS, caps: Caps = CAPS) -> Plan:
    form = form_of(plan_model(agents, caps))
    answer = decide(Ask(messages(goal), form=AsJson(form.shape.parameters)))
    assert isinstance(answer, Text)
    text, problem = form.read(answer.text)
    assert problem == ""
    return plan_model(agents, caps).model_validate_json(text)


def test_two_research_subtasks_then_an_analysis_of_both() -> None:
    plan = planned()
    assert [one.agent for one in plan.subtasks] == ["researcher", "researcher", "analyst"]
    assert levels(plan) == (("first-aspect", "second-aspect"), ("comparison",))
    assert [one.task for one in plan.subtasks[:2]] == [
        "Find out: Compare leases and fencing tokens.",
        "Find out: how do they keep a run safe.",
    ]


def test_a_goal_of_one_piece_is_looked_at_from_two_sides() -> None:
    tasks = [one.task for one in planned("How do budgets work?").subtasks]
    assert tasks[:2] == [
        "Find out: How do budgets work.",
        "Find out: what can go wrong: How do budgets work.",
    ]


def test_a_question_to_a_person_is_the_first_subtasks() -> None:
    plan = planned("Explain the journal and the lease. Ask me which matters more!")
    assert plan.subtasks[0].task == "Find out: Explain the journal. Ask me which matters more!"
    assert "sk me" not in plan.subtasks[1].task + plan.subtasks[2].task


def test_only_agents_of_the_list_and_no_more_than_may_be() -> None:
    assert {one.agent for one in planned(agents=("clerk",)).subtasks} == {"clerk"}
    assert [one.agent for one in planned(agents=("clerk", "writer")).subtasks] == [
        "clerk",
        "clerk",
        "writer",
    ]
    assert len(planned(caps=Caps(nodes=2)).subtasks) == 2


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=300))
def test_every_goal_has_a_sound_plan(goal: str) -> None:
    assert planned(goal) == planned(goal)


@pytest.mark.parametrize("fault", get_args(PlanFault))
def test_a_fault_is_told_and_mended(fault: PlanFault) -> None:
    ask = Ask(messages(), form=AsJson(FORM.shape.parameters))
    answer = told_plan(ask, fault)
    assert answer is not None
    text, problem = FORM.read(answer.text)
    expected = {"self_dependency": "depends on itself", "cycle": "circle", "empty": "empty"}
    assert expected.get(fault, "") in problem
    assert problem
    repaired = (*messages(), AssistantMessage(text=text), UserMessage(text=problem))
    mended = decide(Ask(repaired, form=AsJson(FORM.shape.parameters)))
    assert isinstance(mended, Text)
    assert FORM.read(mended.text) == (mended.text, "")


async def test_over_http_a_told_fault_comes_once_and_only_to_who_asks_for_a_plan() -> None:
    schema = {"name": "Plan", "schema": FORM.shape.parameters, "strict": True}
    asked = [{"role": "user", "content": messages()[1].text}]
    async with (
        serve_standin() as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
        httpx.AsyncClient(base_url=url) as http,
    ):
        told = [{"type": "plan", "fault": "cycle"}, {"type": "plan", "fault": "empty"}]
        await http.post("/control/script", json={"behaviours": told})

        async def plan() -> dict[str, list[object]]:
            answer = await client.chat.completions.create(
                model="m",
                messages=asked,  # type: ignore[arg-type]
                response_format={"type": "json_schema", "json_schema": schema},  # type: ignore[arg-type,typeddict-item]
            )
            found: dict[str, list[object]] = json.loads(answer.choices[0].message.content or "")
            return found

        assert FORM.read(json.dumps(await plan()))[1].count("circle") == 1
        plain = await client.chat.completions.create(model="m", messages=asked)  # type: ignore[arg-type]
        assert "not a language model" in (plain.choices[0].message.content or "")
        assert len((await plan())["subtasks"]) == 3
