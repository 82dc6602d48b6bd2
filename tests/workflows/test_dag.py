"""A plan on a context in memory: exactly those subtasks begin that may, and every one ends as the plan's rules say."""

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.errors import LimitReached, RunCode
from posthouse.events.types import Event, PlanCreated, SubtaskSkipped
from posthouse.journal.model import ChildEnd, Parked, Wait
from posthouse.workflows import dag
from posthouse.workflows.context import Child
from posthouse.workflows.plan import FailurePolicy, NodeState, Plan, Subtask, advance, finished


class Slice:
    """As much of a context as a plan needs; what a run journals is kept in `made`, `ends` and `said`."""

    def __init__(self) -> None:
        self.made: dict[str, dag.AgentTask] = {}
        self.ends: dict[str, ChildEnd] = {}
        self.said: dict[str, Event] = {}
        self.kept: dict[str, Any] = {}
        self.most = 1000

    async def step(self, key: str, work: Any, *arguments: Any) -> Any:
        return self.kept.setdefault(key, await work(*arguments))

    async def emit(self, key: str, event: Event) -> None:
        assert self.said.setdefault(key, event) == event

    async def spawn(self, key: str, workflow: str, request: Any, *, subtask: str) -> Child:
        await asyncio.sleep(0)
        assert (workflow, key) == ("agent", f"subtask:{subtask}")
        if key not in self.made and len(self.made) >= self.most:
            raise LimitReached("full")
        assert self.made.setdefault(key, request) == request
        return Child(key, f"run-{subtask}")

    async def join(self, child: Child) -> ChildEnd:
        if child.key not in self.ends:
            raise Parked((Wait(f"{child.key}/end", "child", None, child.run_id),))
        return self.ends[child.key]

    async def gather(self, *branches: Awaitable[Any]) -> list[Any]:
        ends = await asyncio.gather(*branches, return_exceptions=True)
        raised = [end for end in ends if isinstance(end, BaseException)]
        waits = [end.waits for end in raised if isinstance(end, Parked)]
        if waits:
            raise Parked(tuple(wait for some in waits for wait in some))
        if raised:
            raise raised[0]
        return list(ends)

    async def advanced(self, plan: Plan, policy: FailurePolicy) -> dict[str, dag.Ended] | None:
        """The ends; None when the run is parked, and then it waits for exactly the children that live."""
        try:
            return await dag.run(self, plan, dag.to_agents("the goal"), policy)  # type: ignore[arg-type]
        except Parked as parked:
            waited = {wait.key.removesuffix("/end") for wait in parked.waits}
            assert waited == set(self.made) - set(self.ends) != set()
            return None

    def end(self, subtask: str, status: str = "completed", *, code: str = "fatal") -> None:
        """The subtask's run ends, with the text that stands for what it found."""
        lost = status in ("failed", "cancelled")
        error = None if status == "completed" else {"code": code, "message": f"{subtask}: no"}
        output = None if lost else {"text": f"found by {subtask}", "sources": []}
        self.ends[f"subtask:{subtask}"] = ChildEnd(
            run_id=f"run-{subtask}", status=status, output=output, error=error
        )


def plan_of(**depends_on: str) -> Plan:
    return Plan(
        subtasks=tuple(
            Subtask(id=name, agent="researcher", task=f"Do {name}.", depends_on=tuple(words))
            for name, words in depends_on.items()
        )
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Of up to 50 subtasks, in any order, with any dependencies that make no circle."""
    count = draw(st.integers(1, 50))
    chance = random.Random(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from([0.0, 0.05, 0.2, 0.6]))
    subtasks = [
        Subtask(
            id=f"n{number}",
            agent="researcher",
            task=f"Do {number}.",
            depends_on=tuple(f"n{one}" for one in range(number) if chance.random() < density),
        )
        for number in range(count)
    ]
    chance.shuffle(subtasks)
    return Plan(subtasks=tuple(subtasks))


@settings(max_examples=40, deadline=None)
@given(plan=plans(), seed=st.integers(0, 2**32), policy=st.sampled_from(FailurePolicy))
def test_exactly_those_begin_whose_dependencies_are_done(
    plan: Plan, seed: int, policy: FailurePolicy
) -> None:
    async def play() -> None:
        chance, slices = random.Random(seed), Slice()
        states: dict[str, NodeState] = {}
        while (ends := await slices.advanced(plan, policy)) is None:
            begun = {key.removeprefix("subtask:") for key in slices.made}
            after = advance(plan, states, policy)
            idle = (NodeState.WAITING, NodeState.SKIPPED)
            assert begun == {one for one, state in after.items() if state not in idle}
            living = sorted(begun - {key.removeprefix("subtask:") for key in slices.ends})
            for one in chance.sample(living, chance.randint(1, min(3, len(living)))):
                status = chance.choice(["completed"] * 6 + ["incomplete", "failed", "cancelled"])
                slices.end(one, status)
                states[one] = NodeState(status)
        states = advance(plan, states, policy)
        assert finished(plan, states)
        assert {one: end.result.state for one, end in ends.items()} == states
        skipped = {one for one, state in states.items() if state is NodeState.SKIPPED}
        assert set(slices.said) == {f"subtask:{one}/skipped" for one in skipped}

    asyncio.run(play())


async def test_three_sees_what_two_found() -> None:
    slices, plan = Slice(), plan_of(three="2", **{"2": "1", "1": ""})
    for one in ("1", "2"):
        assert await slices.advanced(plan, FailurePolicy.SKIP) is None
        assert len(slices.made) == int(one)
        slices.end(one)
    assert await slices.advanced(plan, FailurePolicy.SKIP) is None
    task = slices.made["subtask:three"].task
    assert "found by 2" in task
    assert "found by 1" not in task
    assert "found by 1" in slices.made["subtask:2"].task
    slices.end("three")
    ends = await slices.advanced(plan, FailurePolicy.SKIP)
    assert ends is not None
    assert list(ends) == ["three", "2", "1"]
    assert (ends["2"].run_id, ends["2"].result.text) == ("run-2", "found by 2")


async def test_what_needs_a_lost_one_is_skipped_or_told() -> None:
    for policy in FailurePolicy:
        slices, plan = Slice(), plan_of(a="", b="a", c="b", d="")
        assert await slices.advanced(plan, policy) is None
        slices.end("a", "failed", code="connection")
        slices.end("d")
        ends = await slices.advanced(plan, policy)
        if policy is FailurePolicy.CONTINUE:
            assert ends is None
            assert "a: no" in slices.made["subtask:b"].task
            continue
        assert ends is not None
        assert [end.result.state for end in ends.values()] == [
            "failed", "skipped", "skipped", "completed",
        ]  # fmt: skip
        assert ends["a"].code is RunCode.CONNECTION
        assert list(slices.said.values()) == [
            SubtaskSkipped(subtask="b", because=("a",)),
            SubtaskSkipped(subtask="c", because=("b",)),
        ]


async def test_a_part_is_a_result_and_none_is_none() -> None:
    slices, plan = Slice(), plan_of(a="", b="", c="a", d="b")
    assert await slices.advanced(plan, FailurePolicy.SKIP) is None
    slices.end("a", "incomplete", code="max_iterations")
    slices.end("b", "incomplete", code="not a code")
    slices.ends["subtask:b"] = slices.ends["subtask:b"].model_copy(update={"output": None})
    assert await slices.advanced(plan, FailurePolicy.SKIP) is None
    assert set(slices.made) == {"subtask:a", "subtask:b", "subtask:c"}
    slices.end("c")
    ends = await slices.advanced(plan, FailurePolicy.SKIP)
    assert ends is not None
    assert [(end.result.state, end.code) for end in ends.values()] == [
        ("incomplete", "max_iterations"),
        ("failed", None),
        ("completed", None),
        ("skipped", None),
    ]


async def test_any_output_is_a_text() -> None:
    slices, plan = Slice(), plan_of(a="", b="", c="")
    assert await slices.advanced(plan, FailurePolicy.SKIP) is None
    read = {"address": "doc://a", "title": "A", "step": "s"}
    for one, output in {
        "a": {"text": "x", "sources": [read]},
        "b": {"price": 7},
        "c": {"text": "y", "sources": 3},
    }.items():
        slices.ends[f"subtask:{one}"] = ChildEnd(run_id=one, status="completed", output=output)
    ends = await slices.advanced(plan, FailurePolicy.SKIP)
    assert ends is not None
    assert [end.result.text for end in ends.values()] == ["x", '{"price":7}', "y"]
    assert [len(end.result.sources) for end in ends.values()] == [1, 0, 0]


async def test_whoever_depends_on_a_branch_that_raised_does_not_wait_for_ever() -> None:
    slices, plan = Slice(), plan_of(a="", b="a", c="b")
    slices.most = 0
    async with asyncio.timeout(5):
        with pytest.raises(LimitReached):
            await slices.advanced(plan, FailurePolicy.SKIP)


async def test_a_walk_that_is_cancelled_ends() -> None:
    slices, plan = Slice(), plan_of(a="", b="a", c="b")
    reached = asyncio.Event()

    async def join(child: Child) -> ChildEnd:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    slices.join = join  # type: ignore[method-assign]
    walk = asyncio.create_task(slices.advanced(plan, FailurePolicy.SKIP))
    await reached.wait()
    walk.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await walk


async def test_a_plan_is_announced_under_its_number() -> None:
    slices, plan = Slice(), plan_of(b="a", a="")
    await dag.announce(slices, plan)  # type: ignore[arg-type]
    await dag.announce(slices, plan, FailurePolicy.CONTINUE, number=2)  # type: ignore[arg-type]
    assert list(slices.kept) == ["plan", "plan:2"]
    assert slices.kept["plan:2"].on_failure is FailurePolicy.CONTINUE
    assert slices.kept["plan"].subtasks == plan.subtasks
    assert slices.said["plan/created"] == PlanCreated(subtasks=("a", "b"))
    names = ("plan", "plan:2", "plan:2/created", "planner/turn:1", "plan:", "subtask:plan")
    assert [dag.number_of(name) for name in names] == [1, 2, 0, 0, 0, 0]
