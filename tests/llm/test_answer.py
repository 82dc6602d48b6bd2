"""What other endpoints than OpenAI's send, put together."""

import json
from typing import Any

import pytest

from posthouse.errors import ModelUnavailable
from posthouse.llm.answer import MOST_CALLS, MOST_CHARACTERS, ErrorInStream, PartialAnswer
from posthouse.llm.messages import Completion, ToolCall
from posthouse.llm.provider import Listener


def delta(finish: str | None = None, **parts: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"delta": parts, "finish_reason": finish}]}


def piece(index: int | None, call_id: str | None, name: str | None, arguments: Any) -> Any:
    return {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}


def answered(*chunks: dict[str, Any]) -> Completion:
    answer = PartialAnswer(lambda _: None)
    for chunk in chunks:
        answer.add(chunk)
    return answer.completion("m", 1)


def called(*pieces: Any, finish: str = "tool_calls") -> list[tuple[str, str]]:
    chunks = [delta(tool_calls=[one]) for one in pieces]
    return [(c.name, c.arguments) for c in answered(*chunks, delta(finish)).tool_calls]


def test_the_finish_reason_tool_calls_without_any() -> None:
    completion = answered(delta(content="Done."), delta("tool_calls"))
    assert (completion.text, completion.tool_calls) == ("Done.", ())
    assert completion.finish_reason == "tool_calls"


def test_a_listener_hears_how_much_came_that_is_no_text() -> None:
    said: list[str] = []
    listener = Listener(said.append)
    answer = PartialAnswer(listener)
    for chunk in (
        delta(content="So."),
        delta(tool_calls=[piece(0, "a", "look", '{"at"')]),
        delta(tool_calls=[piece(0, "a", "look", ": 1}")]),
        delta(tool_calls=[piece(1, "b", "see", {"a": 1})]),
        delta(function_call={"name": "old", "arguments": "{}"}),
        delta(refusal="No."),
    ):
        answer.add(chunk)
    assert said == ["So."]
    assert listener.beside == len('look{"at": 1}see{"a":1}old{}No.')
    listener.restart()
    assert listener.beside == 0


def test_the_finish_reason_stop_with_calls() -> None:
    assert called(piece(0, "a", "look", "{}"), finish="stop") == [("look", "{}")]


def test_usage_in_every_chunk_is_a_running_count() -> None:
    counts = ({"prompt_tokens": 7, "completion_tokens": n} for n in (0, 1, 2))
    chunks = [delta(content="x") | {"usage": usage} for usage in counts]
    tokens = answered(*chunks, delta("stop")).tokens
    assert tokens is not None
    assert tokens.output == 2


def test_usage_without_choices() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    for choices in ([], None):
        tokens = answered(delta("stop"), {"choices": choices, "usage": usage}).tokens
        assert tokens is not None
        assert tokens.input == 7


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "audio"])
def test_thoughts_are_not_the_answer(name: str) -> None:
    completion = answered(delta(**{name: "hmm"}, content=None), delta("stop", content="So."))
    assert (completion.text, completion.withheld) == ("So.", 0)


def test_text_in_parts() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}]}
    parts = [thinking, {"type": "text", "text": "So"}, {"type": "text", "text": "."}]
    assert answered(delta(content=parts), delta("stop")).text == "So."


def test_a_legacy_function_call() -> None:
    completion = answered(
        delta(function_call={"name": "look", "arguments": ""}),
        delta(function_call={"arguments": '{"q":'}),
        delta(function_call={"arguments": " 1}"}),
        delta("function_call"),
    )
    assert completion.tool_calls == (ToolCall(id="call-0", name="look", arguments='{"q": 1}'),)


def test_a_legacy_copy_of_a_call_is_not_another() -> None:
    both = delta(
        tool_calls=[piece(0, "a", "look", "{}")],
        function_call={"name": "look", "arguments": "{}"},
    )
    assert len(answered(both, delta("tool_calls")).tool_calls) == 1


def test_a_name_with_every_piece() -> None:
    pieces = (piece(0, "a", "look", '{"q"'), piece(0, "a", "look", ": 1}"))
    assert called(*pieces) == [("look", '{"q": 1}')]


def test_pieces_without_a_number_belong_to_the_last_call() -> None:
    first = (piece(None, "a", "look", '{"q"'), piece(None, "a", "look", ": 1}"))
    second = (piece(None, "b", "read", '{"u"'), piece(None, None, None, ": 2}"))
    assert called(*first, *second) == [("look", '{"q": 1}'), ("read", '{"u": 2}')]


def test_a_name_in_pieces() -> None:
    assert called(piece(0, "a", "lo", ""), piece(0, None, "ok", "{}")) == [("look", "{}")]


def test_arguments_that_are_an_object_already() -> None:
    assert called(piece(0, "a", "look", {"q": 1})) == [("look", '{"q":1}')]


def test_a_turn_has_a_most_of_calls() -> None:
    assert len(called(*(piece(n, f"c{n}", "look", "{}") for n in range(MOST_CALLS + 9)))) == 128


def test_garbage_is_garbage() -> None:
    for chunk in ([], {"choices": 5}, {"choices": [7]}, delta() | {"choices": [{"delta": "x"}]}):
        with pytest.raises((TypeError, AttributeError)):
            answered(chunk)  # type: ignore[arg-type]


def test_an_error_inside_says_what_it_is_to_the_log_alone() -> None:
    with pytest.raises(ErrorInStream) as caught:
        answered({"error": {"code": 503, "message": "words"}})
    assert (caught.value.code, caught.value.kind) == ("503", "")
    assert "words" in str(caught.value)
    with pytest.raises(ModelUnavailable):
        answered(delta("error"))


def test_what_is_too_long_is_a_cut_answer_without_its_text() -> None:
    answer = PartialAnswer(lambda _: None)
    while not answer.too_long:
        answer.add(delta(content="x" * 100_000))
    completion = answer.completion("m", 1)
    assert (completion.finish_reason, completion.text) == ("length", "")
    assert completion.withheld > MOST_CHARACTERS


def test_a_completion_of_before_is_read_as_it_was() -> None:
    old = {"model": "m", "text": "t", "finish_reason": "stop", "latency_ms": 1}
    assert Completion.model_validate_json(json.dumps(old)).withheld == 0
