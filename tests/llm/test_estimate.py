from posthouse.llm.estimate import tokens_of, written_tokens
from posthouse.llm.messages import ModelRequest, Tokens, UserMessage
from posthouse.testing.provider import call, call_tools, say

REQUEST = ModelRequest(model="m", messages=(UserMessage(text="x" * 41),))


def test_what_the_provider_said_counts() -> None:
    assert tokens_of(REQUEST, say("hello")) == Tokens(input=10, output=5)


def test_else_four_characters_are_a_token() -> None:
    silent = say("y" * 8, tokens=None)
    assert tokens_of(REQUEST, silent) == Tokens(input=11, output=2)
    asking = call_tools(call("abcd", '{"a": 1}')).model_copy(update={"tokens": None})
    assert tokens_of(REQUEST, asking).output == 3


def test_what_came_in_pieces_is_rounded_up_once() -> None:
    assert [written_tokens(characters) for characters in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_words_that_were_withheld_are_paid_for_all_the_same() -> None:
    refusal = say("", finish_reason="refusal", tokens=None).model_copy(update={"withheld": 9})
    assert tokens_of(REQUEST, refusal).output == 3
