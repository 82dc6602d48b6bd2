"""A model provider that follows a script, for tests of agents and workflows."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias

import orjson
from pydantic import JsonValue

from posthouse.llm.messages import Completion, ModelRequest, Tokens, ToolCall

MODEL = "scripted"
TOKENS = Tokens(input=10, output=5)

Answer: TypeAlias = Completion | Awaitable[Completion]
Play: TypeAlias = Callable[[ModelRequest, Callable[[str], None]], Answer]
Line: TypeAlias = Completion | Exception | Play


def say(text: str, *, finish_reason: str = "stop", tokens: Tokens | None = TOKENS) -> Completion:
    """An answer in words."""
    return Completion(
        model=MODEL, text=text, finish_reason=finish_reason, tokens=tokens, latency_ms=1
    )


def call(name: str, arguments: Mapping[str, JsonValue] | str, call_id: str = "") -> ToolCall:
    """One tool call; arguments that are a text stay as they are. The id is the name by default."""
    text = arguments if isinstance(arguments, str) else orjson.dumps(dict(arguments)).decode()
    return ToolCall(id=call_id or name, name=name, arguments=text)


def call_tools(*calls: ToolCall, text: str = "") -> Completion:
    """An answer that asks for tools; ids that occur twice get a number."""
    seen: set[str] = set()
    distinct = []
    for number, one in enumerate(calls):
        call_id = f"{one.id}-{number}" if one.id in seen else one.id
        seen.add(call_id)
        distinct.append(one.model_copy(update={"id": call_id}))
    return Completion(
        model=MODEL,
        text=text,
        tool_calls=tuple(distinct),
        finish_reason="tool_calls",
        tokens=TOKENS,
        latency_ms=1,
    )


class ScriptedProvider:
    """Answers requests with the script's lines, one after another, and keeps the requests.

    A line is an answer, an error to raise, or a function of the request and `on_text`.
    """

    def __init__(self, script: Iterable[Line] = ()) -> None:
        self._script = iter(script)
        self.requests: list[ModelRequest] = []

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        """The next line. Raises AssertionError when the script has ended."""
        self.requests.append(request)
        line = next(self._script, None)
        if line is None:
            raise AssertionError(f"the script has no line for request {len(self.requests)}")
        if isinstance(line, Exception):
            raise line
        if isinstance(line, Completion):
            for word in line.text.splitlines(keepends=True):
                on_text(word)
            return line
        answer = line(request, on_text)
        return await answer if inspect.isawaitable(answer) else answer
