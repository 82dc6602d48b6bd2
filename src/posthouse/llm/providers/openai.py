"""Any endpoint that speaks OpenAI's chat completions; the only file that knows the SDK."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import openai
import orjson
from openai import AsyncOpenAI, AsyncStream, DefaultAsyncHttpxClient
from openai.types.chat import ChatCompletionChunk

from posthouse import clock
from posthouse.errors import RunFailed
from posthouse.llm import classify
from posthouse.llm.answer import ErrorInStream, PartialAnswer, safe_name, storable
from posthouse.llm.connection import UNPACKED, connected
from posthouse.llm.exchange import GARBLED, Failures, completed
from posthouse.llm.frames import EventReader, EventTooLong
from posthouse.llm.messages import (
    AssistantMessage,
    Completion,
    Message,
    ModelRequest,
    OutputShape,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolOffer,
    UserMessage,
)
from posthouse.llm.provider import Heard
from posthouse.llm.strict import is_strict

DEFAULT_BASE_URL = "https://api.openai.com/v1"

_DRAIN_SECONDS = 0.1
_SEARCHED_CHARACTERS = 2000
# No tool takes longer arguments.
_MOST_ARGUMENT_CHARACTERS = 256 * 1024
# What of unreadable arguments is sent back: enough to see what is wrong with them.
_UNREADABLE_CHARACTERS = 4000
# What an endpoint may refuse and do without; every use of an answer checks it all the same.
_OPTIONAL = re.compile(r"\b(temperature|response_format)\b")


def openai_provider(
    *,
    api_key: str | None,
    base_url: str | None = None,
    max_connections: int = 200,
    idle_seconds: float = 60.0,
    heard: Heard | None = None,
) -> "OpenAIProvider":
    """A provider with one long-lived client; without a key it sends a placeholder.

    An answer of which nothing arrives for `idle_seconds` is given up, to be asked for again. `heard` gets the headers.
    """
    http = connected(
        DefaultAsyncHttpxClient, max_connections=max_connections, idle_seconds=idle_seconds
    )
    client = AsyncOpenAI(
        api_key=api_key or "none",
        base_url=base_url or DEFAULT_BASE_URL,
        max_retries=0,
        default_headers=UNPACKED,
        timeout=http.timeout,
        http_client=http,
    )
    return OpenAIProvider(client, heard)


class OpenAIProvider:
    """Answers model requests by streamed chat completions; retries nothing."""

    def __init__(self, client: AsyncOpenAI, heard: Heard | None = None) -> None:
        self._client = client
        self._heard = heard
        # What an endpoint refused of a request, as `_fingerprint` says it, and takes no more.
        self._refused: set[str] = set()

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._client.close()

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        """The whole answer; `on_text` gets each piece of text as it arrives.

        Raises ModelUnavailable (transient), ContentRefused (by a filter, unheard), or Fatal (a bad
        key, an unknown model).
        """
        return await completed(request, self._answer(request, on_text), _FAILURES)

    async def _answer(self, request: ModelRequest, on_text: Callable[[str], None]) -> PartialAnswer:
        answer = PartialAnswer(on_text)
        async with await self._stream(request) as stream:
            # Not by the SDK's own reader, which bounds no event and validates no chunk.
            await _read(stream.response.aiter_raw(), answer)
        return answer

    async def _stream(self, request: ModelRequest) -> AsyncStream[ChatCompletionChunk]:
        body = body_of(request)
        for name in [name for name in body if _fingerprint(body, name) in self._refused]:
            del body[name]
        refused: set[str] = set()
        while True:
            try:
                stream = await self._open(body)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                name = _refused_part(error)
                if name not in body:
                    raise
                refused.add(_fingerprint(body, name))
                del body[name]
            else:
                # Only now is it known that the refusal was about these parts.
                self._refused |= refused
                return stream

    async def _open(self, body: dict[str, Any]) -> AsyncStream[ChatCompletionChunk]:
        stream: AsyncStream[ChatCompletionChunk]
        try:
            stream = await self._client.chat.completions.create(**body)
        except openai.APIStatusError as error:
            self._hear(body["model"], error.response)
            raise
        self._hear(body["model"], stream.response)
        return stream

    def _hear(self, model: str, response: httpx2.Response) -> None:
        if self._heard is not None:
            self._heard(model, response.headers)


def _fingerprint(body: dict[str, Any], name: str) -> str:
    """A part of the body that the model may refuse, with its value: another value may do."""
    if not _OPTIONAL.fullmatch(name):
        return ""
    return f"{body['model']} {name} {json.dumps(body[name], sort_keys=True)}"


def _refused_part(error: openai.APIStatusError) -> str:
    """The name of the optional part that the endpoint refuses, or ""."""
    named = _OPTIONAL.match(error.param) if isinstance(error.param, str) else None
    if named is None and not error.param:
        named = _OPTIONAL.search(str(error.body)[:_SEARCHED_CHARACTERS])
    return named[1] if named else ""


async def _read(parts: AsyncIterator[bytes], answer: PartialAnswer) -> None:
    """Reads the answer to its end, or until it is too long."""
    reader = EventReader()
    try:
        async for part in parts:
            for event in reader.feed(part):
                if event.startswith(b"[DONE]"):
                    await _drain(parts)
                    return
                answer.add(json.loads(event.decode()))
                if answer.too_long:
                    return
    except EventTooLong as error:
        answer.overflow(error.size)


async def _drain(parts: AsyncIterator[bytes]) -> None:
    """Reads the end of the body, without which its connection cannot be used again."""
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            await anext(parts, None)
    except (TimeoutError, httpx2.RequestError):
        pass


def body_of(request: ModelRequest) -> dict[str, Any]:
    """The request as it is sent."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [_message(message) for message in request.messages],
        "temperature": request.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = [_tool(offer) for offer in request.tools]
        body["tool_choice"] = "auto"
    if request.shape is not None:
        body["response_format"] = _response_format(request.shape)
    if request.max_output_tokens is not None:
        body["max_completion_tokens"] = request.max_output_tokens
    return body


def _response_format(shape: OutputShape) -> dict[str, Any]:
    named = {"name": safe_name(shape.name), "schema": shape.parameters}
    strict = is_strict(shape.parameters)
    return {"type": "json_schema", "json_schema": {**named, "strict": strict}}


def _message(message: Message) -> dict[str, Any]:
    match message:
        case SystemMessage() | UserMessage():
            return {"role": message.role, "content": message.text}
        case ToolMessage():
            return {"role": "tool", "tool_call_id": message.call_id, "content": message.text}
        case AssistantMessage():
            plain: dict[str, Any] = {"role": "assistant", "content": message.text}
            if message.tool_calls:
                plain["tool_calls"] = [_call(call) for call in message.tool_calls]
            return plain


def _call(call: ToolCall) -> dict[str, Any]:
    """A call as it is sent back: endpoints refuse some of what models write, so it is mended."""
    function = {"name": safe_name(call.name), "arguments": _json_object(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _json_object(arguments: str) -> str:
    if len(arguments) <= _MOST_ARGUMENT_CHARACTERS and _is_object(arguments):
        return arguments
    return json.dumps({"unreadable": storable(arguments[:_UNREADABLE_CHARACTERS])})


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def _tool(offer: ToolOffer) -> dict[str, Any]:
    return {"type": "function", "function": offer.model_dump()}


def _classified(error: Exception) -> RunFailed:
    match error:
        case openai.APITimeoutError() | httpx2.TimeoutException():
            return classify.timed_out()
        case openai.APIConnectionError() | openai.APIResponseValidationError():
            return classify.cut_off()
        case openai.APIStatusError():
            headers = error.response.headers
            wait = classify.retry_after_seconds(
                headers.get("retry-after"), headers.get("retry-after-ms"), clock.wall_ms()
            )
            return classify.failure(error.status_code, str(error.code or ""), wait)
        case ErrorInStream():
            return classify.stream_failure(error.code, error.kind)
        case openai.OpenAIError():
            return classify.failure(400)
        case _:
            return classify.cut_off()


def _detail(error: Exception) -> str:
    """What the error says, and what of the connection was behind it."""
    first = error.__cause__
    if first is None:
        return str(error)
    if isinstance(first, httpx2.LocalProtocolError):
        # Its text quotes what was to be sent, the key too.
        return f"{error} {type(first).__name__}"
    last = first
    while deeper := last.__cause__ or last.__context__:
        last = deeper
    causes = [first] if str(last) in ("", str(first)) else [first, last]
    return f"{error} " + ", ".join(f"{type(cause).__name__}: {cause}" for cause in causes)


_FAILURES = Failures(
    (openai.OpenAIError, httpx2.RequestError, ErrorInStream, *GARBLED), _classified, _detail
)
