from hypothesis import given
from hypothesis import strategies as st

from posthouse.agents.decide import (
    CUT_ANSWER,
    EMPTY_ANSWER,
    MAX_CALLS,
    MAX_REPAIRS,
    REFUSED_ANSWER,
    TIME_UP,
    CallTools,
    FinalAnswer,
    Refused,
    Repair,
    Stalled,
    TimeUp,
    TurnLimit,
    TurnState,
    Unusable,
    decide,
)
from posthouse.agents.stall import fingerprint
from posthouse.errors import RunCode
from posthouse.llm.messages import Completion, ToolCall
from posthouse.testing.provider import call, call_tools, say

FIRST = TurnState(1, 3)
LAST = TurnState(3, 3)

asked = st.builds(ToolCall, id=st.text(), name=st.text(), arguments=st.text())
completions = st.builds(
    Completion,
    model=st.just("m"),
    text=st.sampled_from(["", "  \n", "an answer"]),
    tool_calls=st.lists(asked, max_size=20).map(tuple),
    finish_reason=st.sampled_from(
        ["stop", "length", "tool_calls", "content_filter", "refusal", TIME_UP, "?"]
    ),
    latency_ms=st.just(0),
)
states = st.builds(
    lambda turn, more, repairs, *rest: TurnState(turn, turn + more, repairs, *rest),
    st.integers(1, 20),
    st.integers(0, 5),
    st.integers(0, 4),
    st.integers(0, 2),
    st.frozensets(asked.map(fingerprint), max_size=2),
    st.sampled_from([None, None, RunCode.LOOP_DETECTED, RunCode.INVALID_OUTPUT]),
)


def test_words_are_the_answer() -> None:
    assert decide(say("done"), FIRST) == FinalAnswer("done")
    assert decide(say("done"), LAST) == FinalAnswer("done")


def test_calls_are_made_but_not_too_many() -> None:
    many = call_tools(*(call("look", {}) for _ in range(MAX_CALLS + 2)))
    step = decide(many, FIRST)
    assert isinstance(step, CallTools)
    assert (len(step.calls), len(step.surplus)) == (MAX_CALLS, 2)
    assert step.calls + step.surplus == many.tool_calls


def test_calls_on_the_last_turn_are_the_limit() -> None:
    assert decide(call_tools(call("look", {}), text="so far"), LAST) == TurnLimit("so far")


def test_an_empty_answer_is_repaired_a_bounded_number_of_times() -> None:
    assert decide(say("  "), FIRST) == Repair(EMPTY_ANSWER)
    assert decide(say(""), TurnState(3, 9, MAX_REPAIRS)) == Unusable("")
    assert decide(say(""), LAST) == TurnLimit("")


def test_a_cut_answer_is_asked_for_again_then_kept() -> None:
    cut = say("half", finish_reason="length")
    assert decide(cut, FIRST) == Repair(CUT_ANSWER)
    assert decide(cut, TurnState(3, 9, MAX_REPAIRS)) == Unusable("half")
    assert decide(cut, LAST) == TurnLimit("half")


def test_calls_that_are_blocked_are_not_made_and_count_for_nothing() -> None:
    calls = [call("look", str(n)) for n in range(MAX_CALLS + 2)]
    asked = call_tools(*calls)
    barred = frozenset(fingerprint(one) for one in calls[:3])
    step = decide(asked, TurnState(1, 3, blocked=barred))
    assert isinstance(step, CallTools)
    assert step.blocked == asked.tool_calls[:3]
    assert step.calls == asked.tool_calls[3:]
    assert step.surplus == ()
    every = decide(call_tools(*calls[:2]), TurnState(1, 3, blocked=barred))
    assert isinstance(every, CallTools)
    assert every.calls == ()


def test_after_the_ladder_any_answer_is_the_partial_text() -> None:
    closing = TurnState(4, 9, closing=RunCode.LOOP_DETECTED)
    assert closing.last
    for last in (say("found"), call_tools(call("look", {}), text="found")):
        assert decide(last, closing) == Stalled("found")
    assert decide(say("found", finish_reason=TIME_UP), closing) == Stalled("found")
    assert decide(say("no", finish_reason="refusal"), closing) == Stalled("")
    mistaken = TurnState(4, 9, closing=RunCode.INVALID_OUTPUT)
    assert decide(say("found"), mistaken) == Unusable("found")


def test_a_refusal_is_asked_about_once() -> None:
    no = say("no", finish_reason="refusal")
    assert decide(no, FIRST) == Repair(REFUSED_ANSWER)
    assert decide(no, TurnState(2, 9, repairs=1, refusals=1)) == Refused()
    assert decide(no, TurnState(5, 9, repairs=0, refusals=1)) == Refused()
    assert decide(no, TurnState(2, 9, MAX_REPAIRS)) == Refused()
    assert decide(no, LAST) == Refused()


def test_refusals_and_the_end_of_time() -> None:
    assert decide(say("no", finish_reason="content_filter"), FIRST) == Refused()
    assert decide(say("so far", finish_reason=TIME_UP), FIRST) == TimeUp("so far")


@given(completions, states)
def test_it_always_ends(completion: Completion, state: TurnState) -> None:
    step = decide(completion, state)
    if state.last or state.repairs >= MAX_REPAIRS:
        assert not isinstance(step, Repair)
    if state.last:
        assert not isinstance(step, CallTools)


@given(completions, states)
def test_no_call_is_lost_and_a_final_answer_has_words(
    completion: Completion, state: TurnState
) -> None:
    match decide(completion, state):
        case CallTools(calls, surplus, blocked):
            rest = [one for one in completion.tool_calls if fingerprint(one) not in state.blocked]
            assert list(calls + surplus) == rest
            assert len(rest) + len(blocked) == len(completion.tool_calls) > 0
            assert calls or not surplus
        case FinalAnswer(text):
            assert text.strip()
            assert not completion.tool_calls
        case _:
            pass


@given(completions, states)
def test_it_is_a_function(completion: Completion, state: TurnState) -> None:
    assert decide(completion, state) == decide(completion.model_copy(), state)
