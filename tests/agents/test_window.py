import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.agents.window import (
    LARGE,
    LEAST,
    LEFT_OUT,
    SUMMARISED,
    Window,
    fitted,
    older,
    tokens_in,
)
from posthouse.errors import ConfigurationError
from posthouse.llm.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolOffer,
    UserMessage,
)
from posthouse.llm.outside import marked, unmarked
from posthouse.tools.answer import CUT_MARK

Messages = tuple[Message, ...]
OPENING: Messages = (SystemMessage(text="You look."), UserMessage(text="Topic: posts"))


def turn(number: int, *results: str) -> Messages:
    calls = tuple(
        ToolCall(id=f"c{number}-{i}", name="look", arguments="{}") for i in range(len(results))
    )
    told = (ToolMessage(call_id=c.id, text=r) for c, r in zip(calls, results, strict=True))
    return AssistantMessage(text=f"Turn {number}.", tool_calls=calls), *told


def talk(*turns: Messages) -> Messages:
    return (*OPENING, *(message for one in turns for message in one))


def results(messages: Sequence[Message]) -> dict[str, str]:
    return {m.call_id: m.text for m in messages if isinstance(m, ToolMessage)}


def calls(messages: Sequence[Message]) -> list[str]:
    said = (m for m in messages if isinstance(m, AssistantMessage))
    return [call.id for one in said for call in one.tool_calls]


def check_pairs(messages: Sequence[Message]) -> None:
    """After each message with calls come exactly their answers, in order."""
    waiting: list[str] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            assert waiting, "an answer without its call"
            assert message.call_id == waiting.pop(0)
        else:
            assert not waiting, "a call without its answer"
        if isinstance(message, AssistantMessage):
            waiting = [call.id for call in message.tool_calls]
    assert not waiting


# Few texts, so that results are repeated; of every length that is treated in its own way.
LENGTHS = st.sampled_from([0, 10, 399, 400, 999, 1000, 5000])
RESULTS = st.builds(
    lambda letter, length, outside: marked(letter * length) if outside else letter * length,
    st.sampled_from("abß"),
    LENGTHS,
    st.booleans(),
)
TURNS = st.one_of(
    st.lists(RESULTS, max_size=3).map(lambda told: ("calls", told)),
    st.lists(RESULTS, min_size=1, max_size=2).map(lambda told: ("nudged", told)),
    st.just(("repair", [])),
    st.just(("unsaid", [])),
)


@st.composite
def talks(draw: st.DrawFn) -> Messages:
    said: list[Messages] = []
    for number, (kind, told) in enumerate(draw(st.lists(TURNS, max_size=8))):
        if kind in ("calls", "nudged"):
            said.append(turn(number, *told))
        if kind == "repair":
            said.append((AssistantMessage(text="Half an answer."),))
        if kind != "calls":
            said.append((UserMessage(text=f"Mend {number}."),))
    return talk(*said)


LIMITS = st.sampled_from([0, 60, 200, 400, 1000, 3000, 100_000])


@given(talks(), LIMITS)
@settings(max_examples=100, deadline=None)
def test_whatever_is_sent_is_whole_in_order_and_as_short_as_it_can_be(
    messages: Messages, limit: int
) -> None:
    came = fitted(messages, limit)
    check_pairs(came.messages)
    assert came.messages[: len(OPENING)] == OPENING
    assert came.tokens == tokens_in(came.messages)
    if tokens_in(messages) <= limit:
        assert came.messages == messages
    asked, left = calls(messages), calls(came.messages)
    assert left == asked[len(asked) - len(left) :]
    kept = [m for m in came.messages if not isinstance(m, ToolMessage) and m.text != LEFT_OUT]
    plain = [m for m in messages if not isinstance(m, ToolMessage)]
    assert kept[2:] == plain[len(plain) - len(kept) + 2 :]
    assert (len(kept) < len(plain)) == any(m.text == LEFT_OUT for m in came.messages)
    assert came.messages[-1:] == messages[-1:] or isinstance(messages[-1], ToolMessage)
    if came.tokens > limit:
        assert sum(isinstance(m, AssistantMessage) for m in came.messages) <= 1
        assert all(len(text) <= LEAST for text in results(came.messages).values())


@given(talks(), LIMITS)
@settings(max_examples=100, deadline=None)
def test_it_depends_on_the_conversation_alone_and_a_second_time_changes_nothing(
    messages: Messages, limit: int
) -> None:
    came = fitted(messages, limit)
    again = tuple(message.model_copy(deep=True) for message in messages)
    assert fitted(again, limit) == came
    assert fitted(came.messages, limit) == came


@given(talks(), LIMITS)
@settings(max_examples=100, deadline=None)
def test_a_summary_stands_for_whole_turns(messages: Messages, limit: int) -> None:
    past = older(messages, limit)
    if past is None:
        return
    assert tokens_in(messages) > limit
    check_pairs(past.messages)
    came = past.replaced("What was found. " * 1000)
    check_pairs(came)
    assert came[:2] == OPENING
    assert came[2].text.startswith(SUMMARISED)
    assert came[3:] == messages[len(messages) - len(came) + 3 :]
    assert len(came) > 3
    assert fitted(past.messages, limit).messages == past.messages
    check_pairs(fitted(came, limit).messages)


def test_old_results_go_before_turns_and_the_repeated_ones_first() -> None:
    page, other = marked("p" * 4000), marked("o" * 4000)
    messages = talk(turn(1, page), turn(2, other), turn(3, page), turn(4, "x"), turn(5, "y"))
    came = fitted(messages, tokens_in(messages) - 1).messages
    told = results(came)
    assert told["c1-0"].startswith("[Result of call c1-0, 4000 characters, left out. It began:]\n")
    assert unmarked(told["c1-0"].split("\n", 1)[1]) == "p" * 200
    assert (told["c2-0"], told["c3-0"]) == (other, page)
    assert len(came) == len(messages)
    told = results(fitted(messages, 1700).messages)
    assert told["c2-0"].startswith("[Result of call c2-0")
    assert told["c3-0"] == page


def test_a_short_result_stays_as_it_is() -> None:
    short = talk(*(turn(n, chr(64 + n) * (LARGE - 1)) for n in range(1, 9)))
    came = fitted(short, tokens_in(short) - 1).messages
    assert all(text == text[0] * (LARGE - 1) for text in results(came).values())
    assert LEFT_OUT in [message.text for message in came]


def test_turns_that_go_are_told_of_once() -> None:
    messages = talk(*(turn(n, "x" * 300 + str(n)) for n in range(20)))
    first = fitted(messages, 1000).messages
    second = fitted(
        (*first, *(m for n in range(20, 40) for m in turn(n, "x" * 300 + str(n)))), 1000
    )
    told = [message.text for message in second.messages]
    assert told.count(LEFT_OUT) == 1
    assert told[2] == LEFT_OUT
    assert "c39-0" in results(second.messages)


def test_requests_begin_alike_until_there_is_no_more_room() -> None:
    sent, began_anew = talk(), 0
    for number in range(60):
        longer = (*sent, *turn(number, marked(f"{number} " * 100)))
        came = fitted(longer, 2000).messages
        began_anew += came != longer
        sent = came
    assert 0 < began_anew < 20


def test_the_largest_results_of_the_last_turn_are_cut_when_nothing_else_is_left() -> None:
    messages = talk(turn(1, "a" * 9000), turn(2, marked("b" * 9000), "c" * 7000, "short"))
    came = fitted(messages, 1000)
    told = results(came.messages)
    assert came.tokens <= 1000
    assert set(told) == {"c2-0", "c2-1", "c2-2"}
    assert told["c2-2"] == "short"
    assert told["c2-1"].endswith(CUT_MARK)
    assert unmarked(told["c2-0"]).endswith(CUT_MARK)
    assert unmarked(told["c2-0"]) != told["c2-0"]
    assert abs(len(told["c2-0"]) - len(told["c2-1"])) <= 1


def test_a_summary_is_kept_and_a_second_one_takes_its_place() -> None:
    long = talk(*(turn(n, "x" * 900 + str(n)) for n in range(12)))
    past = older(long, 2000)
    assert past is not None
    once = past.replaced("First.")
    longer = (*once, *(m for n in range(12, 20) for m in turn(n, "x" * 900 + str(n))))
    again = older(longer, 2000)
    assert again is not None
    assert again.messages[2] == once[2]
    assert set(results(again.messages)).isdisjoint(results(past.messages))
    twice = again.replaced("Second.")
    assert [m.text.startswith(SUMMARISED) for m in twice].count(True) == 1
    assert "Second." in twice[2].text
    shorter = fitted((*once, *turn(12, "y" * 6000), *turn(13, "z" * 6000)), 1000).messages
    assert once[2] in shorter


def test_too_little_is_not_summarised() -> None:
    messages = talk(turn(1, "a" * 100), turn(2, "b" * 5000), turn(3, "c" * 5000))
    assert older(messages, 2000) is None
    assert older(talk(turn(1, "a" * 100)), 2000) is None


def test_the_offered_tools_and_a_notice_take_room() -> None:
    offer = ToolOffer(name="look", description="d" * 396, parameters={})
    assert Window(1000).left_by((), "") == 1000
    assert Window(1000).left_by((offer,), "n" * 98) == 1000 - 125
    assert Window(1000).left_by((offer,) * 11, "") == 0
    assert Window(None).left_by((offer,), "n") is None
    assert Window().max_tokens == 100_000


def test_a_window_that_is_of_no_use_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 500"):
        Window(499)
    with pytest.raises(ConfigurationError, match="trim, summarise"):
        Window(policy="forget")  # type: ignore[arg-type]


def test_two_hundred_turns_are_fitted_at_once() -> None:
    messages = talk(*(turn(n, *(marked(f"{n}.{i} " * 400) for i in range(4))) for n in range(200)))
    began = time.perf_counter()
    came = fitted(messages, 10_000)
    # The bound is far above what it takes, so that a busy machine does not matter.
    assert time.perf_counter() - began < 0.5
    assert came.tokens <= 10_000
