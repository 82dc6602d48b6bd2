"""What may begin when, in any plan; what a failure takes with it."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.workflows.plan import (
    FailurePolicy,
    NodeState,
    Plan,
    Subtask,
    advance,
    beginning,
    descendants,
    finished,
    levels,
    losses,
    order,
    ready,
    spread,
)

S = NodeState


def plan_of(**graph: str) -> Plan:
    """`c="a b"` is a subtask c that depends on a and b."""
    return Plan(
        subtasks=tuple(
            Subtask(id=one, agent="researcher", task=f"Do {one}.", depends_on=tuple(before.split()))
            for one, before in graph.items()
        )
    )


CHAIN = plan_of(one="", two="one", three="two")
DIAMOND = plan_of(d="b c", a="", b="a", c="a", e="")


def test_a_chain_goes_one_by_one() -> None:
    states = beginning(CHAIN)
    for one, following in (("one", ("two",)), ("two", ("three",)), ("three", ())):
        assert ready(CHAIN, states) == (one,)
        states |= {one: S.RUNNING}
        assert ready(CHAIN, states) == ()
        assert not finished(CHAIN, states)
        states |= {one: S.COMPLETED}
        assert ready(CHAIN, states) == following
    assert finished(CHAIN, states)


def test_exactly_those_begin_whose_dependencies_are_now_done() -> None:
    assert ready(DIAMOND, {}) == ("a", "e")
    assert ready(DIAMOND, {"a": S.INCOMPLETE}) == ("b", "c", "e")
    assert ready(DIAMOND, {"a": S.COMPLETED, "b": S.COMPLETED, "c": S.RUNNING}) == ("e",)
    assert ready(DIAMOND, dict.fromkeys("abc", S.COMPLETED) | {"e": S.READY}) == ("d", "e")


@pytest.mark.parametrize("lost", [S.FAILED, S.CANCELLED, S.SKIPPED])
def test_a_failure_skips_what_depends_on_it_and_nothing_else(lost: NodeState) -> None:
    states = {"a": S.COMPLETED, "b": lost, "c": S.RUNNING, "e": S.WAITING}
    after = spread(DIAMOND, states)
    assert after == {"a": S.COMPLETED, "b": lost, "c": S.RUNNING, "d": S.SKIPPED, "e": S.WAITING}
    assert losses(DIAMOND, after, "d") == ("b",)
    assert spread(CHAIN, {"one": lost})["three"] is S.SKIPPED


def test_or_it_runs_all_the_same() -> None:
    states = {"a": S.COMPLETED, "b": S.FAILED, "c": S.COMPLETED, "e": S.RUNNING}
    assert spread(DIAMOND, states, FailurePolicy.CONTINUE)["d"] is S.WAITING
    assert ready(DIAMOND, states, FailurePolicy.CONTINUE) == ("d",)
    assert ready(DIAMOND, states) == ()


def test_what_has_begun_is_never_skipped() -> None:
    assert spread(CHAIN, {"one": S.FAILED, "two": S.RUNNING})["two"] is S.RUNNING


def test_advance_shows_what_may_begin() -> None:
    assert advance(DIAMOND, {"a": S.COMPLETED, "b": S.FAILED}) == {
        "a": S.COMPLETED,
        "b": S.FAILED,
        "c": S.READY,
        "d": S.SKIPPED,
        "e": S.READY,
    }


def test_levels_and_order_follow_the_plan() -> None:
    assert levels(DIAMOND) == (("a", "e"), ("b", "c"), ("d",))
    assert order(DIAMOND) == ("a", "e", "b", "c", "d")
    assert descendants(DIAMOND, ["b"]) == {"d"}
    assert descendants(DIAMOND, ["a", "e"]) == {"b", "c", "d"}
    assert descendants(DIAMOND, []) == frozenset()


def test_every_state_is_of_one_kind() -> None:
    assert {one for one in S if not one.begun} == {S.WAITING, S.READY}
    assert {one for one in S if one.begun and not one.ended} == {S.RUNNING}
    assert {one for one in S if one.done} == {S.COMPLETED, S.INCOMPLETE}
    assert {one for one in S if one.lost} == {S.FAILED, S.CANCELLED, S.SKIPPED}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan of up to 50 subtasks, in an order that says nothing of what depends on what."""
    size = draw(st.integers(1, 50))
    chance = Random(draw(st.integers(0, 1 << 32)))
    density = draw(st.sampled_from([0.02, 0.1, 0.4]))
    nodes = [
        Subtask(
            id=f"n{n}",
            agent="researcher",
            task="t",
            depends_on=tuple(f"n{m}" for m in range(n) if chance.random() < density),
        )
        for n in range(size)
    ]
    chance.shuffle(nodes)
    return Plan(subtasks=tuple(nodes))


def simulated(
    plan: Plan, chance: Random, policy: FailurePolicy, ends: Callable[[str], NodeState]
) -> tuple[dict[str, NodeState], dict[str, int], dict[str, int]]:
    """The last states, when each subtask began, when each ended; subtasks end one at a time in any order."""
    states, began, ended = beginning(plan), dict[str, int](), dict[str, int]()
    time = 0
    while not finished(plan, states):
        states = spread(plan, states, policy)
        for one in ready(plan, states, policy):
            began[one], states[one] = (time := time + 1), S.RUNNING
        running = [one for one, state in states.items() if state is S.RUNNING]
        if running:
            one = chance.choice(running)
            ended[one], states[one] = (time := time + 1), ends(one)
    return states, began, ended


seeds = st.integers(0, 1 << 32)
policies = st.sampled_from(FailurePolicy)


@settings(max_examples=60, deadline=None)
@given(plans(), seeds, policies)
def test_every_subtask_starts_after_all_its_dependencies(
    plan: Plan, seed: int, policy: FailurePolicy
) -> None:
    states, began, ended = simulated(plan, Random(seed), policy, lambda _: S.COMPLETED)
    assert set(states.values()) == {S.COMPLETED}
    for one in plan.subtasks:
        assert all(ended[before] < began[one.id] for before in one.depends_on)
    place = {one: n for n, one in enumerate(order(plan))}
    assert all(place[before] < place[one.id] for one in plan.subtasks for before in one.depends_on)


@settings(max_examples=60, deadline=None)
@given(plans(), seeds, policies)
def test_it_ends_and_skips_exactly_what_depends_on_a_failure(
    plan: Plan, seed: int, policy: FailurePolicy
) -> None:
    chance = Random(seed)
    ways = [S.COMPLETED, S.COMPLETED, S.COMPLETED, S.INCOMPLETE, S.FAILED, S.CANCELLED]
    states, began, _ = simulated(plan, chance, policy, lambda _: chance.choice(ways))
    assert all(state.ended for state in states.values())
    skipped = {one for one, state in states.items() if state is S.SKIPPED}
    failed = {one for one, state in states.items() if state in (S.FAILED, S.CANCELLED)}
    assert began.keys().isdisjoint(skipped)
    expected = descendants(plan, failed) if policy is FailurePolicy.SKIP else frozenset()
    assert skipped == expected
    assert all(losses(plan, states, one) for one in skipped)
