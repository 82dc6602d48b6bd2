"""Anthropic's own interface, and whatever speaks it; the only file that knows the SDK."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import httpx2
import orjson
from anthropic import AsyncAnthropic, AsyncStream, DefaultAsyncHttpxClient

from posthouse import clock
from posthouse.errors import RunFailed
from posthouse.llm import classify
from posthouse.llm.answer import (
    MOST_CHARACTERS,
    ErrorInStream,
    PartialAnswer,
    safe_name,
    storable,
)
from posthouse.llm.connection import UNPACKED, connected
from posthouse.llm.exchange import GARBLED, Failures, completed
from posthouse.llm.frames import EventReader, EventTooLong
from posthouse.llm.messages import (
    AssistantMessage,
    Completion,
    Message,
    ModelRequest,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolOffer,
    UserMessage,
)
from posthouse.llm.provider import Heard

DEFAULT_BASE_URL = "https://api.anthropic.com"
# The interface wants a limit; this one every model of today takes.
MOST_OUTPUT_TOKENS = 8192

_SEARCHED_CHARACTERS = 2000
_UNREADABLE_CHARACTERS = 4000
_SHAPE = "Gives the final answer. Call it once, alone, when the work is done."
_FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
}
_STATUSES = {
    "rate_limit_error": 429,
    "overloaded_error": 529,
    "authentication_error": 401,
    "permission_error": 403,
    "billing_error": 402,
    "not_found_error": 404,
    "request_too_large": 413,
    "invalid_request_error": 400,
    "timeout_error": 408,
}


def anthropic_provider(
    *,
    api_key: str | None,
    base_url: str | None = None,
    max_connections: int = 200,
    idle_seconds: float = 60.0,
    heard: Heard | None = None,
) -> "AnthropicProvider":
    """A provider with one long-lived client; without a key it sends a placeholder.

    An answer of which nothing arrives for `idle_seconds` is given up, to be asked for again. `heard` gets the headers.
    """
    http = connected(
        DefaultAsyncHttpxClient, max_connections=max_connections, idle_seconds=idle_seconds
    )
    client = AsyncAnthropic(
        api_key=api_key or "none",
        base_url=base_url or DEFAULT_BASE_URL,
        max_retries=0,
        default_headers=UNPACKED,
        timeout=http.timeout,
        http_client=http,
    )
    return AnthropicProvider(client, heard)


class AnthropicProvider:
    """Answers model requests by streamed messages; retries nothing."""

    def __init__(self, client: AsyncAnthropic, heard: Heard | None = None) -> None:
        self._client = client
        self._heard = heard

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._client.close()

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        """The whole answer; `on_text` gets each piece of text as it arrives.

        Raises ModelUnavailable (transient), or Fatal (a bad key, an unknown model).
        """
        return await completed(request, self._answer(request, on_text), _FAILURES)

    async def _answer(self, request: ModelRequest, on_text: Callable[[str], None]) -> PartialAnswer:
        answer = PartialAnswer(on_text)
        shape = safe_name(request.shape.name) if request.shape else ""
        async with await self._open(request) as stream:
            # Not by the SDK's own reader, which bounds no event and validates no chunk.
            await _read(stream.response.aiter_raw(), answer, _Translation(shape))
        return answer

    async def _open(self, request: ModelRequest) -> AsyncStream[Any]:
        try:
            stream: AsyncStream[Any] = await self._client.messages.create(**body_of(request))
        except anthropic.APIStatusError as error:
            self._hear(request.model, error.response)
            raise
        self._hear(request.model, stream.response)
        return stream

    def _hear(self, model: str, response: httpx2.Response) -> None:
        if self._heard is not None:
            self._heard(model, response.headers)


class _Translation:
    """Events of a message as chunks of an answer; a call of the tool `shape` is the answer's text."""

    def __init__(self, shape: str) -> None:
        self._shape = shape
        self._shaped: set[int] = set()
        # Where a form is asked for, words are the answer only when no call of it comes.
        self._words: list[str] = []
        self.kept = 0
        self._input = 0
        self._finish: str | None = None

    def chunk(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """The chunk that an event is, None for one that brings nothing. Raises ErrorInStream."""
        match event.get("type"):
            case "error":
                raise ErrorInStream(event.get("error"))
            case "message_start":
                message = event["message"]
                self._input = _read_tokens(message.get("usage") or {})
                return {"model": message.get("model")}
            case "content_block_start":
                return self._block(event["index"], event["content_block"])
            case "content_block_delta":
                return self._delta(event["index"], event["delta"])
            case "message_delta":
                return self._end(event)
            case "message_stop":
                # Only now is it whole: the reason comes before.
                words = "" if self._shaped else "".join(self._words)
                self.kept = 0
                return _choice({"content": words}, self._finish)
            case _:
                return None

    def _block(self, index: int, block: dict[str, Any]) -> dict[str, Any] | None:
        if block.get("type") != "tool_use":
            return None
        if self._shape and block.get("name") == self._shape:
            self._shaped.add(index)
            return None
        function = {"name": block.get("name"), "arguments": ""}
        return _choice(
            {"tool_calls": [{"index": index, "id": block.get("id"), "function": function}]}
        )

    def _delta(self, index: int, delta: dict[str, Any]) -> dict[str, Any] | None:
        match delta.get("type"):
            case "text_delta" if self._shape and self._held(delta["text"]):
                return None
            case "text_delta":
                words = [*self._words, delta["text"]] if not self._shape else self._words
                return _choice({"content": "".join(words)})
            case "input_json_delta" if index in self._shaped:
                return _choice({"content": delta["partial_json"]})
            case "input_json_delta":
                function = {"arguments": delta["partial_json"]}
                return _choice({"tool_calls": [{"index": index, "function": function}]})
            case _:
                return None

    def _held(self, text: str) -> bool:
        """Keeps words back, while there is room for them in an answer."""
        self._words.append(text)
        self.kept += len(text)
        return self.kept <= MOST_CHARACTERS

    def _end(self, event: dict[str, Any]) -> dict[str, Any]:
        reason = event["delta"].get("stop_reason")
        finish = _FINISHES.get(reason, "other") if reason else None
        self._finish = "stop" if self._shaped and finish == "tool_calls" else finish
        usage = event.get("usage") or {}
        read = _read_tokens(usage) or self._input
        return {"usage": {"prompt_tokens": read, "completion_tokens": usage.get("output_tokens")}}


def _read_tokens(usage: dict[str, Any]) -> int:
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return sum(usage.get(name) or 0 for name in names)


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": delta, "finish_reason": finish}]}


async def _read(
    parts: AsyncIterator[bytes], answer: PartialAnswer, translation: _Translation
) -> None:
    """Reads the answer to its end, or until it is too long."""
    reader = EventReader()
    try:
        async for part in parts:
            for event in reader.feed(part):
                chunk = translation.chunk(json.loads(event.decode()))
                if chunk is not None:
                    answer.add(chunk)
                if answer.too_long:
                    return
    except EventTooLong as error:
        answer.overflow(error.size)
    finally:
        answer.hear(translation.kept)


def body_of(request: ModelRequest) -> dict[str, Any]:
    """The request as it is sent; no temperature, which newer models refuse."""
    system = "\n\n".join(m.text for m in request.messages if isinstance(m, SystemMessage))
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_output_tokens or MOST_OUTPUT_TOKENS,
        "messages": _conversation(request.messages),
        "stream": True,
    }
    if system:
        body["system"] = system
    return body | _offered(request)


def _offered(request: ModelRequest) -> dict[str, Any]:
    """The tools; the form of an answer is one of them."""
    tools = [_tool(offer) for offer in request.tools]
    if request.shape is not None:
        name = safe_name(request.shape.name)
        tools.append(
            {"name": name, "description": _SHAPE, "input_schema": request.shape.parameters}
        )
        choice = {"type": "auto"} if request.tools else {"type": "tool", "name": name}
        return {"tools": tools, "tool_choice": choice}
    if tools:
        return {"tools": tools, "tool_choice": {"type": "auto"}}
    # Calls of before are refused where no tool of their name is offered.
    said = [m for m in request.messages if isinstance(m, AssistantMessage)]
    names = dict.fromkeys(safe_name(call.name) for m in said for call in m.tool_calls)
    past = [{"name": name, "description": "", "input_schema": {"type": "object"}} for name in names]
    return {"tools": past, "tool_choice": {"type": "none"}} if past else {}


def _tool(offer: ToolOffer) -> dict[str, Any]:
    return {
        "name": offer.name,
        "description": offer.description,
        "input_schema": offer.parameters,
    }


def _conversation(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The messages in turns: what follows another of the same side goes into one with it."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message, SystemMessage):
            continue
        role = "assistant" if isinstance(message, AssistantMessage) else "user"
        blocks = _blocks(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    text = [{"type": "text", "text": message.text}] if message.text.strip() else []
    match message:
        case ToolMessage(call_id=call_id):
            return [{"type": "tool_result", "tool_use_id": call_id, "content": text}]
        case AssistantMessage(tool_calls=calls):
            return [*text, *map(_call, calls)]
        case SystemMessage() | UserMessage():
            return text


def _call(call: ToolCall) -> dict[str, Any]:
    """A call as it is sent back: what is refused of what models write is mended."""
    return {
        "type": "tool_use",
        "id": call.id,
        "name": safe_name(call.name),
        "input": _object(call.arguments),
    }


def _object(arguments: str) -> dict[str, Any]:
    try:
        read = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        read = None
    if isinstance(read, dict):
        return read
    return {"unreadable": storable(arguments[:_UNREADABLE_CHARACTERS])} if arguments else {}


def _classified(error: Exception) -> RunFailed:
    match error:
        case anthropic.APITimeoutError() | httpx2.TimeoutException():
            return classify.timed_out()
        case anthropic.APIConnectionError() | anthropic.APIResponseValidationError():
            return classify.cut_off()
        case anthropic.APIStatusError():
            headers = error.response.headers
            wait = classify.retry_after_seconds(
                headers.get("retry-after"), headers.get("retry-after-ms"), clock.wall_ms()
            )
            return classify.failure(error.status_code, _code(str(error.body)), wait)
        case ErrorInStream():
            return classify.failure(_STATUSES.get(error.kind, 500), _code(str(error)))
        case anthropic.AnthropicError():
            return classify.failure(400)
        case _:
            return classify.cut_off()


def _code(words: str) -> str:
    """What only an error's words say, as a code that `classify` knows."""
    if "prompt is too long" in words[:_SEARCHED_CHARACTERS]:
        return "context_length_exceeded"
    if "credit balance is too low" in words[:_SEARCHED_CHARACTERS]:
        return "insufficient_quota"
    return ""


def _detail(error: Exception) -> str:
    """What the error says, and what of the connection was behind it."""
    # Of that the kind alone: its text may quote what was to be sent, the key too.
    cause = error.__cause__
    return f"{error} {type(cause).__name__ if cause else ''}".strip()


_FAILURES = Failures(
    (anthropic.AnthropicError, httpx2.RequestError, ErrorInStream, *GARBLED, KeyError),
    _classified,
    _detail,
)
