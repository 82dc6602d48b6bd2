"""Anthropic's interface against an endpoint that answers as it is told: requests, answers, errors."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from pydantic import JsonValue
from structlog.testing import capture_logs

from posthouse.errors import Fatal, ModelUnavailable, RunCode, RunFailed
from posthouse.llm.messages import (
    AssistantMessage,
    Completion,
    ModelRequest,
    OutputShape,
    SystemMessage,
    Tokens,
    ToolCall,
    ToolMessage,
    ToolOffer,
    UserMessage,
)
from posthouse.llm.provider import Listener
from posthouse.llm.providers.anthropic import MOST_OUTPUT_TOKENS, anthropic_provider, body_of
from posthouse.testing.endpoint import ModelEndpoint, Reply, answered, streamed

REQUEST = ModelRequest(model="claude", messages=(UserMessage(text="hi"),))
LOOK = ToolOffer(name="look", description="Looks.", parameters={"type": "object"})
SHAPE = OutputShape(name="report", parameters={"type": "object", "properties": {}})
CALL = ToolCall(id="c1", name="look", arguments='{"at": 1}')


def begin(tokens: int = 9) -> JsonValue:
    usage = {"input_tokens": tokens, "cache_read_input_tokens": 1, "output_tokens": 1}
    return {"type": "message_start", "message": {"model": "claude-4", "usage": usage}}


def block(index: int, **content: JsonValue) -> JsonValue:
    return {"type": "content_block_start", "index": index, "content_block": content}


def delta(index: int, **content: JsonValue) -> JsonValue:
    return {"type": "content_block_delta", "index": index, "delta": content}


def words(index: int, *pieces: str) -> list[JsonValue]:
    begun = block(index, type="text", text="")
    return [begun, *(delta(index, type="text_delta", text=piece) for piece in pieces)]


def tool(index: int, name: str, *pieces: str, call_id: str = "toolu_1") -> list[JsonValue]:
    begun = block(index, type="tool_use", id=call_id, name=name, input={})
    deltas = [delta(index, type="input_json_delta", partial_json=piece) for piece in pieces]
    return [begun, *deltas, {"type": "content_block_stop", "index": index}]


def end(reason: str = "end_turn") -> list[JsonValue]:
    told = {
        "type": "message_delta",
        "delta": {"stop_reason": reason},
        "usage": {"output_tokens": 5},
    }
    return [{"type": "ping"}, told, {"type": "message_stop"}]


def error(kind: str, message: str = "words of theirs") -> JsonValue:
    return {"type": "error", "error": {"type": kind, "message": message}}


def refused(status: int, kind: str, message: str = "", headers: Mapping[str, str] = {}) -> Reply:
    named = {"Content-Type": "application/json", **headers}
    return answered(status, orjson.dumps(error(kind, message)), named)


async def ask(
    *replies: Reply,
    request: ModelRequest = REQUEST,
    heard: list[Any] | None = None,
    listener: Listener | None = None,
) -> tuple[Completion, list[str], Any]:
    pieces: list[str] = []
    listen = (
        (lambda model, headers: heard.append((model, dict(headers)))) if heard is not None else None
    )
    async with ModelEndpoint(*replies) as endpoint:
        base = endpoint.url.removesuffix("/v1")
        provider = anthropic_provider(
            api_key="sk-test", base_url=base, idle_seconds=1.0, heard=listen
        )
        try:
            completion = await provider.complete(request, listener or pieces.append)
        finally:
            await provider.aclose()
    return completion, pieces, endpoint.requests[0]


async def test_words_stream_and_are_counted() -> None:
    completion, pieces, sent = await ask(streamed(begin(), *words(0, "Hel", "lo"), *end()))
    assert (completion.text, pieces) == ("Hello", ["Hel", "lo"])
    assert (completion.model, completion.finish_reason) == ("claude-4", "stop")
    assert completion.tokens == Tokens(input=10, output=5)
    assert sent == {
        "model": "claude", "max_tokens": MOST_OUTPUT_TOKENS, "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }  # fmt: skip


async def test_calls_of_tools() -> None:
    request = REQUEST.model_copy(update={"tools": (LOOK,), "max_output_tokens": 7})
    parts = [*words(0, "Let me."), *tool(1, "look", '{"at"', ": 1}"), *tool(2, "look", call_id="b")]
    completion, _, sent = await ask(streamed(begin(), *parts, *end("tool_use")), request=request)
    assert completion.tool_calls == (
        ToolCall(id="toolu_1", name="look", arguments='{"at": 1}'),
        ToolCall(id="b", name="look", arguments=""),
    )
    assert (completion.text, completion.finish_reason) == ("Let me.", "tool_calls")
    assert (sent["max_tokens"], sent["tool_choice"]) == (7, {"type": "auto"})
    assert sent["tools"] == [
        {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
    ]


async def test_the_form_of_an_answer_is_a_tool_that_must_be_called() -> None:
    request = REQUEST.model_copy(update={"shape": SHAPE})
    parts = [*words(0, "Here it is."), *tool(1, "report", '{"a"', ": 1}")]
    completion, pieces, sent = await ask(
        streamed(begin(), *parts, *end("tool_use")), request=request
    )
    assert (completion.text, completion.tool_calls) == ('{"a": 1}', ())
    assert (completion.finish_reason, pieces) == ("stop", ['{"a"', ": 1}"])
    assert sent["tool_choice"] == {"type": "tool", "name": "report"}


async def test_a_form_beside_tools_is_free_and_words_count_without_it() -> None:
    request = REQUEST.model_copy(update={"shape": SHAPE, "tools": (LOOK,)})
    parts = words(0, "{}", " ")
    completion, _, sent = await ask(streamed(begin(), *parts, *end()), request=request)
    assert (completion.text, sent["tool_choice"]) == ("{} ", {"type": "auto"})
    assert [offer["name"] for offer in sent["tools"]] == ["look", "report"]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("max_tokens", "length"), ("refusal", "refusal"), ("stop_sequence", "stop"), ("new", "other")],
)
async def test_every_end_has_its_reason(reason: str, finish: str) -> None:
    completion, _, _ = await ask(streamed(begin(), *words(0, "It"), *end(reason)))
    assert completion.finish_reason == finish
    assert completion.text == ("" if finish == "refusal" else "It")


async def test_headers_are_heard_also_of_errors() -> None:
    heard: list[Any] = []
    limit = {"anthropic-ratelimit-requests-limit": "50"}
    await ask(streamed(begin(), *words(0, "x"), *end(), headers=limit), heard=heard)
    with pytest.raises(ModelUnavailable):
        await ask(refused(429, "rate_limit_error", headers=limit), heard=heard)
    told = [(model, headers["anthropic-ratelimit-requests-limit"]) for model, headers in heard]
    assert told == [("claude", "50")] * 2


CUT = streamed(begin(), *words(0, "It"), whole=False)
UNENDED = streamed(begin(), *words(0, "It"))
UNSTOPPED = streamed(begin(), *words(0, "It"), *end()[:2])
CORRUPT = streamed(begin(), '{"type": ', *end())
GARBLED = streamed(begin(), {"type": "content_block_delta"}, *end())
OVERLOADED = streamed(begin(), *words(0, "It"), error("overloaded_error"))


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (refused(429, "rate_limit_error"), RunCode.RATE_LIMIT),
        (refused(500, "api_error"), RunCode.SERVER_ERROR),
        (refused(529, "overloaded_error"), RunCode.SERVER_ERROR),
        (refused(408, "timeout_error"), RunCode.TIMEOUT),
        (OVERLOADED, RunCode.SERVER_ERROR),
        (streamed(begin(), error("rate_limit_error")), RunCode.RATE_LIMIT),
        (CUT, RunCode.CONNECTION),
        (UNENDED, RunCode.CONNECTION),
        (UNSTOPPED, RunCode.CONNECTION),
        (CORRUPT, RunCode.CONNECTION),
        (GARBLED, RunCode.CONNECTION),
        (Reply(), RunCode.CONNECTION),
        (Reply(silent=True), RunCode.TIMEOUT),
        (refused(401, "authentication_error"), RunCode.FATAL),
        (refused(404, "not_found_error"), RunCode.FATAL),
        (refused(400, "invalid_request_error", "prompt is too long: 3 > 2"), RunCode.FATAL),
        (refused(400, "invalid_request_error", "Your credit balance is too low"), RunCode.FATAL),
        (streamed(begin(), error("authentication_error")), RunCode.FATAL),
    ],
)
async def test_a_failure_has_its_code_and_none_of_their_words(reply: Reply, code: RunCode) -> None:
    request = REQUEST.model_copy(update={"timeout_seconds": 0.3})
    with capture_logs() as lines, pytest.raises(RunFailed) as raised:
        await ask(reply, request=request)
    assert raised.value.code is code
    assert "theirs" not in str(raised.value)
    assert "sk-test" not in str(lines)


@pytest.mark.parametrize(
    ("parts", "beside"),
    [
        (tool(0, "look", '{"at"', ": 1"), 'look{"at": 1'),
        (words(0, "It", " was"), "It was"),
        ([*words(0, "So"), *tool(1, "report", '{"a"')], "So"),
    ],
)
async def test_what_a_cut_answer_brought_beside_its_text_is_heard(
    parts: list[JsonValue], beside: str
) -> None:
    listener = Listener(lambda _: None)
    request = REQUEST.model_copy(update={"shape": SHAPE, "tools": (LOOK,)})
    with pytest.raises(ModelUnavailable):
        await ask(streamed(begin(), *parts, whole=False), request=request, listener=listener)
    assert listener.beside == len(beside)


async def test_a_retry_after_is_read_and_nothing_is_retried() -> None:
    with pytest.raises(ModelUnavailable) as raised:
        await ask(refused(429, "rate_limit_error", headers={"retry-after": "7"}))
    assert raised.value.retry_after == 7


async def test_what_only_words_say_is_known() -> None:
    with pytest.raises(Fatal, match="longer than the model can read"):
        await ask(refused(400, "invalid_request_error", "prompt is too long"))


def test_a_conversation_is_turns_of_two_sides() -> None:
    messages = (
        SystemMessage(text="Be kind."),
        UserMessage(text="hi"),
        AssistantMessage(text=" ", tool_calls=(CALL, CALL.model_copy(update={"arguments": "{"}))),
        ToolMessage(call_id="c1", text="seen"),
        ToolMessage(call_id="c1", text=""),
        UserMessage(text="go on"),
    )
    body = body_of(REQUEST.model_copy(update={"messages": messages}))
    assert body["system"] == "Be kind."
    user, said, told = body["messages"]
    assert (user["role"], said["role"], told["role"]) == ("user", "assistant", "user")
    assert [part["input"] for part in said["content"]] == [{"at": 1}, {"unreadable": "{"}]
    assert [part["type"] for part in told["content"]] == ["tool_result", "tool_result", "text"]
    assert [part.get("content") for part in told["content"][:2]] == [
        [{"type": "text", "text": "seen"}],
        [],
    ]
    # Calls that were made need their tools, also where none may be called any more.
    assert [offer["name"] for offer in body["tools"]] == ["look"]
    assert body["tool_choice"] == {"type": "none"}
