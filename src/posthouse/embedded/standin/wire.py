"""Answers as bytes on the wire: chunks of a stream, or one body."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import assert_never

import orjson

from posthouse.embedded.standin.decide import Answer, Calls, Refusal, Text
from posthouse.llm.messages import AssistantMessage, Message, ToolCall

_PIECE = re.compile(r"(?:\s*\S+){1,5}\s*|\s+")
_ARGUMENT_PIECE = 24
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Usage:
    """Tokens of one request, estimated as characters / 4."""

    prompt: int
    completion: int

    def wire(self) -> dict[str, int]:
        """As the API says it."""
        total = self.prompt + self.completion
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": total,
        }


@dataclass(frozen=True)
class Envelope:
    """What every chunk of one answer repeats; `created` in seconds since 1970."""

    id: str
    created: int
    model: str

    def wire(self, kind: str) -> dict[str, object]:
        """The common fields of an object of this kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": "fp_standin",
        }


@dataclass(frozen=True)
class Stream:
    """One streamed answer in order: the role, what is said piece by piece, how it ended."""

    opening: bytes
    pieces: tuple[bytes, ...]
    closing: bytes


def tokens(characters: int) -> int:
    """The estimate for a text of this length, at least 1."""
    return max(1, -(-characters // 4))


def prompt_tokens(messages: tuple[Message, ...]) -> int:
    """The estimate for everything that was said so far."""
    return tokens(sum(_length(message) for message in messages))


def completion_tokens(answer: Answer) -> int:
    """The estimate for an answer."""
    match answer:
        case Calls(calls):
            return tokens(sum(len(call.name) + len(call.arguments) for call in calls))
        case Text(text) | Refusal(text):
            return tokens(len(text))


def limited(answer: Answer, max_tokens: int | None) -> tuple[Answer, str]:
    """The answer cut to the limit, and its finish reason."""
    whole = max_tokens is None or completion_tokens(answer) <= max_tokens
    left = 0 if max_tokens is None else max_tokens * 4
    match answer:
        case Calls(calls):
            return (answer, "tool_calls") if whole else (Calls(tuple(_cut(calls, left))), "length")
        case Text(text) | Refusal(text):
            return (answer, "stop") if whole else (replace(answer, text=text[:left]), "length")


def whole_body(answer: Answer, reason: str, envelope: Envelope, usage: Usage) -> bytes:
    """The answer as one `chat.completion`."""
    message: dict[str, object] = {"role": "assistant", "content": None, "refusal": None}
    match answer:
        case Text(text):
            message["content"] = text
        case Refusal(text):
            message["refusal"] = text
        case Calls(calls):
            message["tool_calls"] = [_call(call, call.arguments) for call in calls]
        case _:
            assert_never(answer)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    fields = envelope.wire("chat.completion")
    return orjson.dumps(fields | {"choices": [choice], "usage": usage.wire()})


def streamed(answer: Answer, reason: str, envelope: Envelope, usage: Usage | None) -> Stream:
    """The answer as `chat.completion.chunk` events; a usage has the last one of them."""
    fields = envelope.wire("chat.completion.chunk")
    tail = {} if usage is None else {"usage": None}

    def chunk(delta: dict[str, object], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: %b\n\n" % orjson.dumps(fields | {"choices": [choice]} | tail)

    content = "" if isinstance(answer, Text) else None
    closing = chunk({}, reason)
    if usage is not None:
        last = orjson.dumps(fields | {"choices": [], "usage": usage.wire()})
        closing += b"data: %b\n\n" % last
    return Stream(
        opening=chunk({"role": "assistant", "content": content, "refusal": None}),
        pieces=tuple(chunk(delta) for delta in _deltas(answer)),
        closing=closing + DONE,
    )


def _deltas(answer: Answer) -> Iterator[dict[str, object]]:
    match answer:
        case Text(text):
            yield from ({"content": piece} for piece in _PIECE.findall(text))
        case Refusal(text):
            yield from ({"refusal": piece} for piece in _PIECE.findall(text))
        case Calls(calls):
            for index, call in enumerate(calls):
                yield {"tool_calls": [{"index": index, **_call(call, "")}]}
                for piece in _sliced(call.arguments):
                    yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
        case _:
            assert_never(answer)


def _call(call: ToolCall, arguments: str) -> dict[str, object]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _sliced(text: str) -> Iterator[str]:
    return (text[i : i + _ARGUMENT_PIECE] for i in range(0, len(text), _ARGUMENT_PIECE))


def _cut(calls: tuple[ToolCall, ...], left: int) -> Iterator[ToolCall]:
    for call in calls:
        left -= len(call.name)
        if left < 0:
            return
        yield call.model_copy(update={"arguments": call.arguments[:left]})
        left -= min(left, len(call.arguments))


def _length(message: Message) -> int:
    if not isinstance(message, AssistantMessage):
        return len(message.text)
    return len(message.text) + sum(len(c.name) + len(c.arguments) for c in message.tool_calls)
