"""What is wrong with a plan is said so that a planner can mend it, and at once."""

import json
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from posthouse.agents.form import form_of
from posthouse.llm.strict import is_strict
from posthouse.workflows.graph import Caps, depths
from posthouse.workflows.plan import Plan, Subtask, order, plan_model, problem_of

AGENTS = ("analyst", "researcher", "writer")
MODEL = plan_model(AGENTS)


def node(subtask_id: str, *depends_on: str, agent: str = "researcher") -> dict[str, Any]:
    return {"id": subtask_id, "agent": agent, "task": "Do it.", "depends_on": list(depends_on)}


def told(*nodes: dict[str, Any]) -> str:
    """What the planner is told of its answer."""
    return form_of(MODEL).read(json.dumps({"subtasks": nodes}))[1]


def chain(length: int) -> list[dict[str, Any]]:
    return [node(f"n{n}", *([f"n{n - 1}"] if n else [])) for n in range(length)]


@pytest.mark.parametrize(
    ("nodes", "wrong"),
    [
        ([], "subtasks: the plan is empty: give at least one subtask"),
        ([node("a"), node("b"), node("a")], "these ids are used more than once: a; give each"),
        (
            [node("a", agent="coder")],
            "the agent 'coder' of subtask 'a' is unknown; there are: analyst, researcher, writer",
        ),
        ([node("a", "x", "y")], "subtask 'a' depends on what is no subtask of the plan: x, y"),
        ([node("a", "a")], "subtask 'a' depends on itself"),
        ([node("a", "b"), node("b", "a")], "wait for each other in a circle: a -> b -> a (each"),
        (
            [node("z"), node("a", "c", "z"), node("b", "a"), node("c", "b")],
            "in a circle: a -> b -> c -> a (each would need the one before it)",
        ),
        (chain(11), "11 subtasks deep, at most 10 may wait for one another in a row: n0 -> n1 ->"),
        (
            [node("a"), *(node(f"n{n}", "a") for n in range(21))],
            "too many subtasks depend on one, at most 20 may: 21 on 'a'",
        ),
        (
            [node(f"n{n}") for n in range(21)],
            "21 subtasks depend on nothing and would begin at once, at most 20 may",
        ),
        ([node("A b")], "subtasks.0.id: string should match pattern"),
        ([node("a") | {"task": " "}], "subtasks.0.task: string should have at least 1 character"),
        ([node("a") | {"task": "x" * 4001}], "should have at most 4000 characters"),
        ([node("a") | {"model": "big"}], "subtasks.0.model does not belong there"),
        ([{"id": "a", "agent": "writer"}], "subtasks.0.task is missing"),
    ],
)
def test_the_planner_is_told_exactly_what_is_wrong(nodes: list[dict[str, Any]], wrong: str) -> None:
    problem = told(*nodes)
    assert wrong in problem
    assert problem.count(";") < 4
    assert len(problem) < 450


def test_several_faults_are_told_together() -> None:
    problem = told(node("a", "x", agent="coder"), node("b", "b"))
    for part in ("'coder' of subtask 'a'", "no subtask of the plan: x", "'b' depends on itself"):
        assert part in problem


def test_what_is_told_stays_short() -> None:
    long = [f"{'n' * 60}{n:02}" for n in range(50)]
    circle = told(*[node(one, long[n - 1]) for n, one in enumerate(long)])
    assert "circle: " in circle
    assert " -> ... -> " in circle
    agents = told(*[node(f"n{n}", agent="x" * 64) for n in range(20)])
    assert "and 15 more" in agents
    unknown = told(*[node(f"n{n}", *(f"z{m}" for m in range(900))) for n in range(10)])
    assert "and 866 more" in unknown
    assert max(map(len, (circle, agents, unknown))) < 1300


def _hostile() -> dict[str, str]:
    many = [node(f"n{n}") for n in range(10_000)]
    return {
        "10,000 subtasks": json.dumps({"subtasks": many}),
        "10,000 empty ones": json.dumps({"subtasks": [{}] * 10_000}),
        "a task of a megabyte": json.dumps({"subtasks": [node("a") | {"task": "x" * 1_000_000}]}),
        "200,000 dependencies": json.dumps({"subtasks": [node("a", *["b"] * 200_000)]}),
        "20,000 dependencies": json.dumps({"subtasks": [node("a", *["b"] * 20_000)]}),
        "a long circle of 50": json.dumps(
            {
                "subtasks": [
                    node(f"n{n}", *(f"n{m}" for m in range(50) if m != n)) for n in range(50)
                ]
            }
        ),
    }


@pytest.mark.parametrize("what", _hostile())
def test_hostile_plans_are_refused_in_a_moment(what: str) -> None:
    text = _hostile()[what]
    began = perf_counter()
    assert form_of(MODEL).read(text)[1]
    with pytest.raises(ValidationError) as refused:
        MODEL.model_validate_json(text)
    assert len(problem_of(refused.value)) < 1000
    assert (
        perf_counter() - began < 1
    )  # tenths of what it takes are milliseconds; a square would show


def test_the_count_is_said_before_anything_looks_at_the_subtasks() -> None:
    with pytest.raises(ValidationError) as refused:
        MODEL.model_validate_json(_hostile()["10,000 subtasks"])
    said = "subtasks: the plan has 10000 subtasks, at most 50 are allowed: join those that belong"
    assert problem_of(refused.value) == f"{said} together"


def test_a_good_plan_is_read_and_a_dependency_counts_once() -> None:
    free = {"id": "c", "agent": "writer", "task": " Do it. "}
    good = {"subtasks": [node("a"), node("b", "a", "a"), free]}
    text, problem = form_of(MODEL).read(f"```json\n{json.dumps(good)}\n```")
    assert problem == ""
    plan = MODEL.model_validate_json(text)
    assert [one.depends_on for one in plan.subtasks] == [(), ("a",), ()]
    assert isinstance(plan, Plan)


def test_the_shape_tells_the_agents_and_the_limits_and_is_strict() -> None:
    shape = form_of(plan_model(("writer", "clerk"), Caps(nodes=7))).shape
    assert shape.name == "Plan"
    assert is_strict(shape.parameters)
    subtask = shape.parameters["$defs"]["Subtask"]
    assert subtask["properties"]["agent"]["enum"] == ["writer", "clerk"]
    assert subtask["required"] == ["id", "agent", "task", "depends_on"]
    assert shape.parameters["properties"]["subtasks"]["maxItems"] == 7
    assert "enum" not in str(Subtask.model_json_schema())


def test_the_same_agents_and_caps_are_the_same_model() -> None:
    assert plan_model(AGENTS, Caps()) is MODEL
    assert plan_model(AGENTS, Caps(nodes=3)) is not MODEL
    assert plan_model(("clerk",)).agents == ("clerk",)
    assert (Plan.agents, Plan.caps) == (None, None)


def test_no_plan_at_all_is_unsound_and_without_caps_any_size_is_fine() -> None:
    for nodes in ([], [node("a", "b"), node("b", "a")], [node("a"), node("a")], [node("a", "b")]):
        with pytest.raises(ValidationError):
            Plan.model_validate({"subtasks": nodes})
    assert len(order(Plan.model_validate({"subtasks": chain(2000)}))) == 2000


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 12), st.lists(st.integers(0, 13), max_size=4), min_size=1))
def test_a_plan_is_taken_exactly_when_its_graph_is_sound(graph: dict[int, list[int]]) -> None:
    nodes = [node(f"n{n}", *(f"n{m}" for m in before)) for n, before in graph.items()]
    known = all(m in graph for before in graph.values() for m in before)
    left = {n: set(before) for n, before in graph.items()}
    while free := [n for n, before in left.items() if not before & left.keys()]:
        left = {n: before for n, before in left.items() if n not in free}
    problem = told(*nodes)
    assert (problem == "") is (known and not left)


def test_depths_count_the_longest_way() -> None:
    assert depths({"c": ("b", "a"), "b": ("a",), "a": ()}) == {"a": 0, "b": 1, "c": 2}
