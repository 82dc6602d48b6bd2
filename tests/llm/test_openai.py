import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from posthouse.errors import ContentRefused, Fatal, ModelUnavailable, RunCode, RunFailed
from posthouse.llm.answer import MOST_CHARACTERS
from posthouse.llm.frames import MOST_EVENT_BYTES
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
from posthouse.llm.providers.openai import OpenAIProvider, openai_provider

OFFER = ToolOffer(name="look", description="Looks.", parameters={"type": "object"})
SECRET = "sk-canary-0123456789"


class Endpoint:
    """A server that answers each request with the next canned bytes and keeps the bodies."""

    def __init__(self) -> None:
        self.answers: list[bytes | asyncio.Event] = []
        self.bodies: list[dict[str, Any]] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split()[0])
        self.bodies.append(json.loads(await reader.readexactly(length)))
        answer = self.answers.pop(0)
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return False
        writer.write(answer)
        await writer.drain()
        return answer.endswith(b"\r\n0\r\n\r\n") or b"content-length" in answer


def response(status: int, body: dict[str, Any], headers: str = "") -> bytes:
    raw = json.dumps(body).encode()
    start = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}"
    return f"{start}content-length: {len(raw)}\r\n\r\n".encode() + raw


def problem(status: int, code: str = "", headers: str = "", **more: str) -> bytes:
    error = {"message": f"provider text {SECRET}", "type": "x", "code": code, **more}
    return response(status, {"error": error}, headers)


def stream(*chunks: dict[str, Any] | str, whole: bool = True) -> bytes:
    """A chunked SSE body; not `whole` means that the connection just ends."""
    start = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    lines = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    parts = [f"data: {line}\n\n".encode() for line in lines]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return start + framed + (b"0\r\n\r\n" if whole else b"")


def delta(finish: str | None = None, **parts: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": parts, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "model": "m-1", "choices": [choice]}


def piece(index: int | None, call_id: str | None, name: str | None, arguments: str) -> Any:
    return {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}


USAGE = {"id": "c", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


class Bench:
    def __init__(self, endpoint: Endpoint, provider: OpenAIProvider) -> None:
        self.endpoint = endpoint
        self.provider = provider
        self.text: list[str] = []

    async def ask(self, *answers: bytes | asyncio.Event, **request: Any) -> Completion:
        self.endpoint.answers.extend(answers)
        given = {"model": "m", "messages": (UserMessage(text="hi"),), "timeout_seconds": 5.0}
        return await self.provider.complete(ModelRequest(**(given | request)), self.text.append)

    async def failure(self, *answers: bytes | asyncio.Event, **request: Any) -> RunFailed:
        with pytest.raises(RunFailed) as caught:
            await self.ask(*answers, **request)
        assert "canary" not in str(caught.value)
        assert "provider text" not in str(caught.value)
        return caught.value


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    endpoint = Endpoint()
    async with serving(endpoint.serve) as url:
        provider = openai_provider(api_key=SECRET, base_url=url + "/v1")
        yield Bench(endpoint, provider)
        await provider.aclose()


@asynccontextmanager
async def serving(handler: Callable[..., Any]) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_text_arrives_in_pieces_and_whole(bench: Bench) -> None:
    answer = await bench.ask(
        stream(delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"),
               delta("stop"), USAGE, "[DONE]")
    )  # fmt: skip
    assert bench.text == ["Hel", "lo"]
    assert (answer.text, answer.finish_reason, answer.model) == ("Hello", "stop", "m-1")
    assert answer.tokens == Tokens(input=7, output=3)
    assert answer.latency_ms >= 0


async def test_usage_may_be_missing(bench: Bench) -> None:
    answer = await bench.ask(stream(delta("stop", content="x"), "[DONE]"))
    assert answer.tokens is None


async def test_usage_that_cannot_be_is_none(bench: Bench) -> None:
    for given in ("many", -1, 2**40, None):
        usage = {"prompt_tokens": given, "completion_tokens": 3, "total_tokens": 3}
        answer = await bench.ask(stream(delta("stop", content="x") | {"usage": usage}, "[DONE]"))
        assert answer.tokens is None


async def test_what_is_sent(bench: Bench) -> None:
    calls = (
        ToolCall(id="a", name="look at", arguments="{oops"),
        ToolCall(id="b", name="look", arguments='{"x": 1}'),
    )
    await bench.ask(
        stream(delta("stop", content="x"), "[DONE]"),
        messages=(
            SystemMessage(text="be"),
            UserMessage(text="ask"),
            AssistantMessage(text="", tool_calls=calls),
            ToolMessage(call_id="a", text="bad"),
            ToolMessage(call_id="b", text="good"),
        ),
        tools=(OFFER,),
        max_output_tokens=9,
    )
    body = bench.endpoint.bodies[0]
    assert body["stream_options"] == {"include_usage": True}
    assert body["max_completion_tokens"] == 9
    assert body["tools"][0]["function"]["name"] == "look"
    assert [message["role"] for message in body["messages"]] == [
        "system", "user", "assistant", "tool", "tool",
    ]  # fmt: skip
    sent = body["messages"][2]["tool_calls"]
    assert [call["function"]["name"] for call in sent] == ["look_at", "look"]
    assert json.loads(sent[0]["function"]["arguments"]) == {"unreadable": "{oops"}
    assert sent[1]["function"]["arguments"] == '{"x": 1}'


async def test_tool_calls_are_assembled(bench: Bench) -> None:
    answer = await bench.ask(
        stream(
            delta(tool_calls=[piece(0, "call_1", "look", ""), piece(1, "call_2", "read", '{"u"')]),
            delta(tool_calls=[piece(0, None, None, '{"q": 1}')]),
            delta(tool_calls=[piece(1, None, None, ": 2}")]),
            delta("tool_calls"),
            "[DONE]",
        )
    )
    assert answer.tool_calls == (
        ToolCall(id="call_1", name="look", arguments='{"q": 1}'),
        ToolCall(id="call_2", name="read", arguments='{"u": 2}'),
    )


async def test_call_ids_are_safe_and_unique(bench: Bench) -> None:
    pieces = [
        piece(0, "a/b:ü", "look", "{}"),
        piece(1, "same", "look", "{}"),
        piece(2, "same", "look", "{}"),
        piece(3, None, "look", "{}"),
        piece(4, "x" * 200, "look", "{}"),
        piece(5, "x" * 201, "look", "{}"),
        piece(6, None, None, ""),
    ]
    answer = await bench.ask(stream(delta("tool_calls", tool_calls=pieces), "[DONE]"))
    ids = [call.id for call in answer.tool_calls]
    assert ids[:4] == ["a-b--", "same", "same-2", "call-3"]
    assert len(set(ids)) == len(ids) == 6
    assert max(map(len, ids)) <= 64


async def test_servers_that_number_every_call_zero_or_not_at_all(bench: Bench) -> None:
    zero = [piece(0, "a", "look", "{}"), piece(0, "b", "look", "{}")]
    answer = await bench.ask(stream(delta("tool_calls", tool_calls=zero), "[DONE]"))
    assert [call.id for call in answer.tool_calls] == ["a", "b"]
    none = [piece(None, "a", "look", "{}"), piece(None, "b", "look", "{}")]
    answer = await bench.ask(stream(delta("tool_calls", tool_calls=none), "[DONE]"))
    assert [call.id for call in answer.tool_calls] == ["a", "b"]


async def test_surrogates_are_joined_or_replaced(bench: Bench) -> None:
    answer = await bench.ask(
        stream(delta(content="\ud83d"), delta("stop", content="\ude00 \ud800"), "[DONE]")
    )
    assert answer.text == "😀 \ufffd"
    "".join(bench.text).encode()


@pytest.mark.parametrize(
    "answer",
    [
        stream(delta(content="half"), "[DONE]"),
        stream(delta(content="half"), whole=False),
        stream(delta(content="half"), '{"id": "c", "choi', "[DONE]"),
        stream("[1, 2]", "[DONE]"),
        stream(),
        response(200, {"not": "a stream"}),
        b"",
        b"no http\r\n\r\n",
        stream(delta(content=17), "[DONE]"),
        stream(delta(tool_calls=[{"index": 0, "function": "none"}]), "[DONE]"),
        stream(delta() | {"choices": 5}, "[DONE]"),
    ],
)
async def test_truncated_and_corrupt_answers_are_connection_errors(
    bench: Bench, answer: bytes
) -> None:
    error = await bench.failure(answer)
    assert isinstance(error, ModelUnavailable)
    assert error.code is RunCode.CONNECTION


async def test_nobody_listens() -> None:
    async with serving(Endpoint().serve) as url:
        pass
    provider = openai_provider(api_key=None, base_url=url)
    with pytest.raises(ModelUnavailable) as caught:
        await provider.complete(ModelRequest(model="m", messages=()), print)
    assert caught.value.code is RunCode.CONNECTION
    await provider.aclose()


async def test_a_silent_server_is_a_timeout(bench: Bench) -> None:
    never = asyncio.Event()
    error = await bench.failure(never, timeout_seconds=0.05)
    never.set()
    assert isinstance(error, ModelUnavailable)
    assert error.code is RunCode.TIMEOUT


@pytest.mark.parametrize("status", [401, 403, 404, 400, 422])
async def test_fatal_statuses(bench: Bench, status: int) -> None:
    assert isinstance(await bench.failure(problem(status)), Fatal)
    assert len(bench.endpoint.bodies) == 1


async def test_transient_statuses_are_not_retried_here(bench: Bench) -> None:
    error = await bench.failure(problem(429, headers="retry-after: 3\r\n"))
    assert isinstance(error, ModelUnavailable)
    assert (error.code, error.retry_after) == (RunCode.RATE_LIMIT, 3.0)
    error = await bench.failure(problem(503))
    assert (error.code, len(bench.endpoint.bodies)) == (RunCode.SERVER_ERROR, 2)


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({"code": "rate_limit_exceeded"}, RunCode.RATE_LIMIT),
        ({"code": 429}, RunCode.RATE_LIMIT),
        ({"type": "server_error", "code": None}, RunCode.SERVER_ERROR),
        ({"code": 400}, RunCode.FATAL),
        ({"code": ["odd"]}, RunCode.SERVER_ERROR),
        ("words", RunCode.SERVER_ERROR),
    ],
)
async def test_an_error_inside_the_stream(bench: Bench, told: Any, code: RunCode) -> None:
    error = told | {"message": f"provider text {SECRET}"} if isinstance(told, dict) else told
    assert (await bench.failure(stream(delta(content="x"), {"error": error}))).code is code
    assert (await bench.failure(stream(delta("error", content="x")))).code is RunCode.SERVER_ERROR


async def test_an_odd_error_code_is_no_fault_of_ours(bench: Bench) -> None:
    odd = response(400, {"error": {"message": "m", "code": {"a": 1}, "param": 5}})
    assert isinstance(await bench.failure(odd), Fatal)


async def test_a_filter_that_does_not_let_the_model_see_the_request(bench: Bench) -> None:
    assert isinstance(await bench.failure(problem(400, "content_filter")), ContentRefused)
    assert len(bench.endpoint.bodies) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (stream(delta(refusal="I will"), delta(refusal=" not"), delta("stop"), USAGE), "refusal"),
        (stream(delta(content="I"), delta("refusal", content=" won't"), USAGE), "refusal"),
        (stream(delta(content="bad "), delta("content_filter"), USAGE), "content_filter"),
        (stream(delta(refusal="no"), delta("content_filter"), USAGE), "content_filter"),
    ],
)
async def test_a_refusal_has_no_words_but_is_counted(
    bench: Bench, answer: bytes, reason: str
) -> None:
    completion = await bench.ask(answer)
    assert (completion.finish_reason, completion.text, completion.tool_calls) == (reason, "", ())
    assert completion.tokens == Tokens(input=7, output=3)
    assert completion.withheld > 0


GOOD = stream(delta("stop", content="x"), "[DONE]")
SHAPE = OutputShape(name="Plan[1]", parameters={"type": "object", "properties": {}})
CLOSED = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(("parameters", "strict"), [(SHAPE.parameters, False), (CLOSED, True)])
async def test_a_shape_is_asked_for(
    bench: Bench, parameters: dict[str, Any], *, strict: bool
) -> None:
    await bench.ask(GOOD, shape=OutputShape(name="Plan[1]", parameters=parameters))
    assert bench.endpoint.bodies[0]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "Plan_1_", "schema": parameters, "strict": strict},
    }


async def test_no_shape_asks_for_no_format(bench: Bench) -> None:
    await bench.ask(GOOD)
    assert "response_format" not in bench.endpoint.bodies[0]


@pytest.mark.parametrize(
    ("part", "refusal"),
    [
        ("temperature", problem(400, "unsupported_value", param="temperature")),
        ("response_format", problem(400, param="response_format")),
        ("response_format", problem(400, param="response_format.json_schema")),
        ("response_format", response(422, {"detail": "extra field: response_format"})),
    ],
)
async def test_what_an_endpoint_refuses_is_left_out_and_remembered(
    bench: Bench, part: str, refusal: bytes
) -> None:
    await bench.ask(refusal, GOOD, shape=SHAPE)
    await bench.ask(GOOD, shape=SHAPE)
    assert [part in body for body in bench.endpoint.bodies] == [True, False, False]
    other = {"temperature", "response_format"} - {part}
    assert all(other <= body.keys() for body in bench.endpoint.bodies)


async def test_two_parts_may_be_refused_and_another_value_is_tried(bench: Bench) -> None:
    refusals = problem(400, param="temperature"), problem(400, param="response_format")
    await bench.ask(*refusals, GOOD, shape=SHAPE)
    await bench.ask(GOOD, shape=OutputShape(name="Other", parameters=CLOSED), temperature=1.0)
    sent = [body.keys() & {"temperature", "response_format"} for body in bench.endpoint.bodies]
    assert [len(parts) for parts in sent] == [2, 1, 0, 2]


@pytest.mark.parametrize("param", ["messages", "temperature"])
async def test_a_refusal_of_something_else_stays_one(bench: Bench, param: str) -> None:
    refusals = [problem(400, param=param)] * (1 + (param == "temperature"))
    assert isinstance(await bench.failure(*refusals), Fatal)
    await bench.ask(GOOD)
    assert "temperature" in bench.endpoint.bodies[-1]


async def test_one_connection_serves_many_requests(bench: Bench) -> None:
    for _ in range(3):
        await bench.ask(stream(delta("stop", content="x"), "[DONE]"))
    assert bench.endpoint.connections == 1


async def test_the_log_has_the_details(bench: Bench) -> None:
    with capture_logs() as lines:
        await bench.failure(problem(401))
    assert lines[0]["event"] == "llm_error"
    assert lines[0]["status"] == 401
    assert "provider text" in lines[0]["detail"]


async def test_the_log_names_what_broke_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    [line] = await logged(f"http://127.0.0.1:{port}", SECRET)
    assert line["detail"].startswith("Connection error. ConnectError: ")
    assert "ConnectionRefusedError: [Errno " in line["detail"]


async def test_the_log_shows_no_key_that_cannot_be_sent() -> None:
    async with serving(Endpoint().serve) as url:
        [line] = await logged(url, f"{SECRET}\n")
    assert line["detail"] == "Connection error. LocalProtocolError"


async def logged(url: str, key: str) -> list[Any]:
    """What one request says of its failure in the log."""
    provider = openai_provider(api_key=key, base_url=url)
    with capture_logs() as lines, pytest.raises(ModelUnavailable):
        await provider.complete(
            ModelRequest(model="m", messages=(), timeout_seconds=20.0), lambda _: None
        )
    await provider.aclose()
    return list(lines)


async def endless(writer: asyncio.StreamWriter, start: bytes, piece: bytes) -> None:
    """Writes the piece for ever, or until the client has enough."""
    writer.write(start)
    while True:
        writer.write(piece)
        await writer.drain()


@pytest.mark.parametrize(
    "piece",
    [
        b"data: " + json.dumps(delta(content="x" * 100_000)).encode() + b"\n\n",
        b"data: " + json.dumps(delta(tool_calls=[piece(0, "a", "f", "x" * 99_999)])).encode() + b"\n\n",
        b"data: " + b"x" * 100_000 + b"\n",
        b"y" * 100_000,
    ],
    ids=["text", "arguments", "one event", "one line"],
)  # fmt: skip
async def test_an_endless_answer_is_cut_off(piece: bytes) -> None:
    start = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n\r\n"
    completion = await asked(lambda _, writer: endless(writer, start, piece))
    assert (completion.finish_reason, completion.text, completion.tool_calls) == ("length", "", ())
    assert MOST_CHARACTERS < completion.withheld < MOST_EVENT_BYTES + 200_000


async def test_the_body_of_an_error_is_not_read_for_ever() -> None:
    start = b"HTTP/1.1 401 X\r\ncontent-type: text/html\r\n\r\n"
    with pytest.raises(Fatal, match="API key"):
        await asked(lambda _, writer: endless(writer, start, b"<p>" * 10_000))


async def asked(handler: Callable[..., Any]) -> Completion:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with serving(serve) as url:
        provider = openai_provider(api_key=None, base_url=url)
        request = ModelRequest(model="m", messages=(), timeout_seconds=20.0)
        try:
            return await provider.complete(request, lambda _: None)
        finally:
            await provider.aclose()
