"""Any endpoint that speaks OpenAI's chat completions; the only file that knows the SDK."""

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import openai
import structlog
from httpx2 import Limits
from openai import AsyncOpenAI, AsyncStream, DefaultAsyncHttpxClient
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDeltaToolCall

from posthouse import clock
from posthouse.errors import RunFailed
from posthouse.llm import classify
from posthouse.llm.messages import (
    AssistantMessage,
    Completion,
    Message,
    ModelRequest,
    SystemMessage,
    Tokens,
    ToolCall,
    ToolMessage,
    ToolOffer,
    UserMessage,
)

DEFAULT_BASE_URL = "https://api.openai.com/v1"

_CONNECT_SECONDS = 10.0
_LOGGED_CHARACTERS = 2000
_ID_LIMIT = 64
_WORD_LIMIT = 128
_MOST_CALLS = 128
_MOST_TOKENS = 2**31
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")

# The SDK validates no chunk, so what a server garbles shows where it is used.
_GARBLED = (ValueError, TypeError, AttributeError, RecursionError)

_log = structlog.get_logger(__name__)


def openai_provider(
    *,
    api_key: str | None,
    base_url: str | None = None,
    max_connections: int = 200,
    idle_seconds: float = 60.0,
) -> "OpenAIProvider":
    """A provider with one long-lived client; without a key it sends a placeholder.

    An answer of which nothing arrives for `idle_seconds` is given up, to be asked for again.
    """
    timeout = openai.Timeout(idle_seconds, connect=_CONNECT_SECONDS)
    limits = Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
    client = AsyncOpenAI(
        api_key=api_key or "none",
        base_url=base_url or DEFAULT_BASE_URL,
        max_retries=0,
        timeout=timeout,
        http_client=DefaultAsyncHttpxClient(limits=limits, timeout=timeout),
    )
    return OpenAIProvider(client)


class OpenAIProvider:
    """Answers model requests by streamed chat completions; retries nothing."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client
        # Models that refused a temperature: they answer only at their own.
        self._fixed_temperature: set[str] = set()

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._client.close()

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        """The whole answer; `on_text` gets each piece of text as it arrives.

        Raises ModelUnavailable (transient), ContentRefused, or Fatal (a bad key, an unknown model).
        """
        started = clock.monotonic()
        try:
            async with asyncio.timeout(request.timeout_seconds):
                answer = await self._answer(request, on_text)
            return answer.completion(request.model, round((clock.monotonic() - started) * 1000))
        except TimeoutError:
            raise classify.timed_out() from None
        except (openai.OpenAIError, *_GARBLED) as error:
            _log_failure(request.model, error)
            # Not chained: whoever prints the error must not print the provider's words.
            raise _classified(error) from None

    async def _answer(self, request: ModelRequest, on_text: Callable[[str], None]) -> "_Answer":
        answer = _Answer(on_text)
        async with await self._stream(request) as stream:
            async for chunk in stream:
                answer.add(chunk)
        return answer

    async def _stream(self, request: ModelRequest) -> AsyncStream[ChatCompletionChunk]:
        body = _body(request)
        if request.model in self._fixed_temperature:
            del body["temperature"]
        try:
            return await self._open(body)
        except openai.BadRequestError as error:
            if error.param != "temperature" or "temperature" not in body:
                raise
        self._fixed_temperature.add(request.model)
        del body["temperature"]
        return await self._open(body)

    async def _open(self, body: dict[str, Any]) -> AsyncStream[ChatCompletionChunk]:
        stream: AsyncStream[ChatCompletionChunk]
        stream = await self._client.chat.completions.create(**body)
        return stream


@dataclass
class _PartialCall:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class _Answer:
    """An answer in the making."""

    on_text: Callable[[str], None]
    model: str = ""
    text: list[str] = field(default_factory=list)
    calls: list[_PartialCall] = field(default_factory=list)
    by_index: dict[int, _PartialCall] = field(default_factory=dict)
    finish_reason: str | None = None
    declined: bool = False
    tokens: Tokens | None = None

    def add(self, chunk: ChatCompletionChunk) -> None:
        # The SDK builds chunks without validation: any part of them may be missing.
        if not isinstance(chunk, ChatCompletionChunk):
            raise classify.cut_off()
        self.model = self.model or _word(getattr(chunk, "model", None))
        self.tokens = _tokens(getattr(chunk, "usage", None)) or self.tokens
        for choice in getattr(chunk, "choices", None) or ():
            self._add_choice(choice)

    def _add_choice(self, choice: Choice) -> None:
        self.finish_reason = _word(getattr(choice, "finish_reason", None)) or self.finish_reason
        delta = getattr(choice, "delta", None)
        if delta is None:
            return
        if isinstance(delta.content, str) and delta.content:
            self.text.append(delta.content)
            self.on_text(_storable(delta.content))
        self.declined = self.declined or bool(delta.refusal)
        for piece in delta.tool_calls or ():
            self._add_call(piece)

    def _add_call(self, piece: ChoiceDeltaToolCall) -> None:
        index = getattr(piece, "index", None)
        place = len(self.calls) if index is None else index
        call = self.by_index.get(place)
        # Some servers number every call 0: another id is another call.
        if call is None or (piece.id and call.id and piece.id != call.id):
            call = self.by_index[place] = _PartialCall()
            self.calls.append(call)
        call.id = call.id or piece.id or ""
        if piece.function is not None:
            call.name += piece.function.name or ""
            call.arguments += piece.function.arguments or ""

    def completion(self, asked_model: str, latency_ms: int) -> Completion:
        """The whole answer. Raises ContentRefused; ModelUnavailable when the stream was cut."""
        if self.finish_reason is None:
            _log.warning("llm_stream_cut", model=asked_model, pieces=len(self.text))
            raise classify.cut_off()
        if self.declined or self.finish_reason == "content_filter":
            raise classify.refused()
        return Completion(
            model=self.model or asked_model,
            text=_storable("".join(self.text)),
            tool_calls=_finished_calls(self.calls),
            finish_reason=self.finish_reason,
            tokens=self.tokens,
            latency_ms=latency_ms,
        )


def _finished_calls(calls: Iterable[_PartialCall]) -> tuple[ToolCall, ...]:
    whole = [call for call in calls if call.name or call.arguments][:_MOST_CALLS]
    taken: set[str] = set()
    finished = []
    for position, call in enumerate(whole):
        call_id = _safe_id(call.id, position, taken)
        taken.add(call_id)
        name, arguments = _storable(call.name), _storable(call.arguments)
        finished.append(ToolCall(id=call_id, name=name, arguments=arguments))
    return tuple(finished)


def _safe_id(given: str, position: int, taken: set[str]) -> str:
    """The provider's id made safe for a step key; an empty or taken one gets a number."""
    safe = _UNSAFE.sub("-", given)[:_ID_LIMIT] or "call"
    candidate, number = safe if given else f"{safe}-{position}", position
    while candidate in taken:
        candidate = f"{safe[: _ID_LIMIT - 12]}-{number}"
        number += 1
    return candidate


def _tokens(usage: object) -> Tokens | None:
    """What the provider says; None unless both numbers are such as can be."""
    numbers = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    match numbers:
        case [int(given), int(made)] if 0 <= given < _MOST_TOKENS and 0 <= made < _MOST_TOKENS:
            return Tokens(input=given, output=made)
        case _:
            return None


def _word(value: object) -> str:
    return _storable(value)[:_WORD_LIMIT] if isinstance(value, str) else ""


def _storable(text: str) -> str:
    """The text with surrogates joined; a lone one, which no store takes, is U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _body(request: ModelRequest) -> dict[str, Any]:
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
    if request.max_output_tokens is not None:
        body["max_completion_tokens"] = request.max_output_tokens
    return body


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
    name = _UNSAFE.sub("_", call.name)[:_ID_LIMIT] or "unknown"
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": name, "arguments": _json_object(call.arguments)},
    }


def _json_object(arguments: str) -> str:
    try:
        whole = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        whole = False
    return arguments if whole else json.dumps({"unreadable": arguments})


def _tool(offer: ToolOffer) -> dict[str, Any]:
    return {"type": "function", "function": offer.model_dump()}


def _classified(error: Exception) -> RunFailed:
    match error:
        case openai.APITimeoutError():
            return classify.timed_out()
        case openai.APIConnectionError() | openai.APIResponseValidationError():
            return classify.cut_off()
        case openai.APIStatusError():
            headers = error.response.headers
            wait = classify.retry_after_seconds(
                headers.get("retry-after"), headers.get("retry-after-ms"), clock.wall_ms()
            )
            return classify.failure(error.status_code, error.code or "", wait)
        case openai.APIError():
            return classify.stream_failure(error.code or "", error.type or "")
        case openai.OpenAIError():
            return classify.failure(400)
        case _:
            return classify.cut_off()


def _log_failure(model: str, error: Exception) -> None:
    _log.warning(
        "llm_error",
        model=model,
        error=type(error).__name__,
        status=getattr(error, "status_code", None),
        request=getattr(error, "request_id", None),
        detail=str(error)[:_LOGGED_CHARACTERS],
    )
