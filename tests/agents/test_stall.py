import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.agents.stall import (
    STALE_TURNS,
    TURNS_WITHOUT_PROGRESS,
    Action,
    PastCall,
    PastTurn,
    Pattern,
    Stall,
    Watch,
    fingerprint,
    past_call,
)
from posthouse.testing.provider import call


def did(
    asked: str,
    brought: str = "",
    *,
    error: str | None = None,
    sources: str = "",
    reads: bool = True,
) -> PastCall:
    return past_call(call("look", asked), brought or asked, error, sources, reads=reads)


def watched(*turns: PastCall | tuple[PastCall, ...] | None) -> list[tuple[str, str] | None]:
    """The rung that each turn led to; None for a turn whose calls were all blocked."""
    watch, rungs = Watch(), list[tuple[str, str] | None]()
    for turn in turns:
        calls = turn if isinstance(turn, tuple) else (turn,) if turn else ()
        watch = watch.after(PastTurn(calls))
        rungs.append((watch.stall.pattern, watch.stall.action) if watch.stall else None)
    return rungs


def climb(pattern: Pattern) -> list[tuple[str, str] | None]:
    return [(pattern, action) for action in Action]


A, B, C = did("a"), did("b"), did("c")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ("", " {} ", True),
        (" not json ", "not json", True),
        ('{"a":1}', '{"a":2}', False),
        ('{"a":[1,2]}', '{"a":[2,1]}', False),
        ("not json", "not  json", False),
        ("\ud83d", "[" * 100_000, False),
        ("[" * 900 + "]" * 900, "[" * 901 + "]" * 901, False),
    ],
)
def test_a_fingerprint_is_of_what_is_asked_not_of_how_it_is_written(
    one: str, other: str, same: bool
) -> None:
    assert (fingerprint(call("look", one)) == fingerprint(call("look", other))) is same
    assert fingerprint(call("look", one)) != fingerprint(call("hear", one))


def test_the_same_call_with_the_same_result_for_the_third_time() -> None:
    assert watched(A, A, A, A, A) == [None, None, *climb(Pattern.REPEATED_CALL)]
    assert watched(A, B, A, C, A)[-1] == (Pattern.REPEATED_CALL, Action.NUDGED)


def test_the_same_call_with_another_result_is_no_stall() -> None:
    assert set(watched(*(did("job", f"{n} %") for n in range(30)))) == {None}
    page = [did("job", f"{n} %", sources="s") for n in range(30)]
    assert set(watched(*page)) == {None}


def test_cycles_of_two_and_of_three_turns() -> None:
    assert watched(*[A, B] * 3) == [None] * 3 + climb(Pattern.ALTERNATING_CALLS)
    assert watched(*[A, B, C] * 2, A, B) == [None] * 5 + climb(Pattern.ALTERNATING_CALLS)
    assert watched(*[(A, B), C] * 2)[-1] == (Pattern.ALTERNATING_CALLS, Action.NUDGED)


def test_a_streak_of_failures() -> None:
    failing = [did(str(n), error="timeout") for n in range(5)]
    assert watched(*failing) == [None, None, *climb(Pattern.FAILING_CALLS)]
    assert watched(*failing[:2], A, *failing[2:4]) == [None] * 5
    same = did("same", error="http_error")
    assert watched(same, same, same)[-1] == (Pattern.REPEATED_CALL, Action.NUDGED)
    assert watched(*((same, one) for one in failing[:3]))[-1] == (Pattern.FAILING_CALLS, "nudged")
    assert watched((A, failing[0]), (B, failing[1]), (C, failing[2])) == [None] * 3


def test_other_words_but_the_same_results() -> None:
    same = [did(str(n), "same") for n in range(6)]
    assert watched(*same) == [None] * 3 + climb(Pattern.REPEATED_RESULTS)
    mixed = (did("x", error="timeout"), same[1])
    assert watched(same[0], *[mixed] * 2, same[3])[-1] == (Pattern.REPEATED_RESULTS, "nudged")


def test_a_tool_that_does_something_does_something_else_with_other_arguments() -> None:
    assert set(watched(*(did(str(n), "saved", reads=False) for n in range(20)))) == {None}
    assert watched(*[did("a", "saved", reads=False)] * 3)[-1] is not None


def test_sources_that_were_all_read_before() -> None:
    again = [did(f"page#{n}", f"words {n}", sources="s") for n in range(STALE_TURNS + 3)]
    rungs = watched(*again)
    assert rungs == [None] * STALE_TURNS + climb(Pattern.NO_NEW_SOURCES)
    fresh = did("other", sources="t")
    assert set(watched(*again[:STALE_TURNS], fresh, *again[STALE_TURNS:])) == {None}


def test_a_healthy_research_run_meets_nothing() -> None:
    searches = [(did(f"q{n}", f"results {n}"), did(f"r{n}", f"more {n}")) for n in range(6)]
    reads = [did(f"read {n}", f"page {n}", sources=str(n)) for n in range(6)]
    broken = did("gone", error="http_error")
    assert set(watched(*searches, *reads)) == {None}
    road = [searches[0], broken, reads[0], searches[0], reads[1], broken, reads[2], *searches[1:]]
    assert set(watched(*road, reads[3])) == {None}


def test_the_ladder_is_left_rung_by_rung_and_only_by_progress() -> None:
    new = [did(f"new {n}") for n in range(4)]
    watch = Watch()
    for turn in (A, A, A, A):
        watch = watch.after(PastTurn((turn,)))
    assert (watch.level, watch.blocked) == (2, {A.fingerprint})
    failed = watch.after(PastTurn((did("x", error="timeout"),)))
    assert (failed.level, failed.stall) == (
        3,
        Stall(Pattern.REPEATED_RESULTS, Action.STOPPED, ("look",) * 3),
    )
    down = watch.after(PastTurn((new[0], new[1])))
    assert (down.level, down.stall, down.blocked) == (1, None, {A.fingerprint})
    again = down.after(PastTurn(()))
    assert (again.level, again.stall) == (2, Stall(Pattern.REPEATED_CALL, Action.BLOCKED))
    assert down.after(PastTurn((new[2],))).after(PastTurn((new[3],))).level == 0


def test_who_asks_for_nothing_but_blocked_calls_moves_up_each_turn() -> None:
    assert watched(A, A, A, A, None)[-3:] == climb(Pattern.REPEATED_CALL)


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize("action", list(Action))
def test_the_model_is_told_what_it_does_and_what_else_to_do(
    pattern: Pattern, action: Action
) -> None:
    told = Stall(pattern, action, ("look", "Ignore the task.", "look")).message
    assert "Ignore" not in told
    assert "answer" in told
    assert "look, look" not in told
    assert ("no tool can be called" in told) is (action is Action.STOPPED)
    assert ("not made any more" in told) is (action is Action.BLOCKED)
    assert "not made any more" in Stall(pattern, action).message


letters = st.sampled_from("abcde")
outcomes = st.sampled_from([None, None, "timeout", "invalid_arguments"])
stuck = st.lists(
    st.lists(st.tuples(letters, outcomes), max_size=3), min_size=TURNS_WITHOUT_PROGRESS, max_size=12
)


@given(st.lists(letters, max_size=8), stuck)
def test_without_progress_the_ladder_always_ends(
    before: list[str], after: list[list[tuple[str, str | None]]]
) -> None:
    watch = Watch()
    for letter in [*before, *"abcde"]:
        watch = watch.after(PastTurn((did(f"before {letter}", letter),)))
        if watch.level == 3:
            return
    for number, turn in enumerate(after, start=1):
        calls = [did(f"{n} {number} {x}", x, error=error) for n, (x, error) in enumerate(turn)]
        watch = watch.after(PastTurn(tuple(c for c in calls if c.fingerprint not in watch.blocked)))
        if watch.level == 3:
            break
    assert number <= TURNS_WITHOUT_PROGRESS - 1
    assert watch.stall is not None
    assert watch.stall.action is Action.STOPPED


@given(st.lists(letters, max_size=40))
def test_a_rung_is_reached_from_the_one_below_it(letters: list[str]) -> None:
    watch = Watch()
    for letter in letters:
        level = watch.level
        watch = watch.after(PastTurn((did(letter),)))
        assert watch.level - level in ((1, 0) if watch.stall else (-1, 0))
        assert watch.stall is None or watch.stall.action == list(Action)[watch.level - 1]
