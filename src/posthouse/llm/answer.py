"""An answer in the making: what an endpoint streams, put together in bounded memory and linear time."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from posthouse.llm import classify
from posthouse.llm.messages import Completion, Tokens, ToolCall
from posthouse.llm.provider import Listener

# What the longest output limits of models come to (128,000 tokens); what writes more goes in circles.
MOST_CHARACTERS = 512 * 1024
MOST_CALLS = 128

ID_LIMIT = 64
_WORD_LIMIT = 32
_MOST_TOKENS = 2**31
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_LONE = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")
_WITHHELD = frozenset({"refusal", "content_filter"})
# Events show both, so neither is whatever an endpoint writes.
_FINISHES = frozenset(
    {"stop", "length", "tool_calls", "function_call", "content_filter", "refusal", "error"}
)
_OTHER_WORDS = {"max_tokens": "length", "end_turn": "stop", "tool_use": "tool_calls"}
_MODEL = re.compile(r"[A-Za-z0-9_.:/@+-]{1,128}")

_log = structlog.get_logger(__name__)


class ErrorInStream(Exception):
    """The endpoint broke off a stream that had begun well; `str()` of it is for the log alone."""

    def __init__(self, error: object) -> None:
        super().__init__(str(error))
        told = error if isinstance(error, dict) else {}
        self.code = str(told.get("code") or "")
        self.kind = str(told.get("type") or "")


@dataclass
class _PartialCall:
    id: str = ""
    names: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)


class PartialAnswer:
    """Takes the chunks of one answer; `on_text` gets each piece of its text, and a Listener the size of the rest.

    Garbage in a chunk raises ValueError, TypeError or AttributeError.
    """

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._model = ""
        self._text: list[str] = []
        self._calls: list[_PartialCall] = []
        self._by_index: dict[int, _PartialCall] = {}
        self._legacy = _PartialCall()
        self._finish_reason: str | None = None
        self._declined = False
        self._tokens: Tokens | None = None
        self._size = 0

    @property
    def too_long(self) -> bool:
        """Whether it is longer than any answer may be; it is of no use then."""
        return self._size > MOST_CHARACTERS

    def overflow(self, size: int) -> None:
        """Counts what came and was too much to be read."""
        self._size += max(size, MOST_CHARACTERS + 1)

    def hear(self, characters: int) -> None:
        """Tells a Listener of so much that is no text."""
        if isinstance(self._on_text, Listener):
            self._on_text.hear(characters)

    def add(self, chunk: dict[str, Any]) -> None:
        """One more chunk. Raises ErrorInStream."""
        if error := chunk.get("error"):
            raise ErrorInStream(error)
        self._model = self._model or _model(chunk.get("model"))
        self._tokens = _tokens(chunk.get("usage")) or self._tokens
        for choice in chunk.get("choices") or ():
            self._add_choice(choice)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        self._finish_reason = _finish(choice.get("finish_reason")) or self._finish_reason
        delta = choice.get("delta")
        if delta is None:
            return
        if text := _said(delta.get("content")):
            self._size += len(text)
            self._text.append(text)
            self._on_text(storable(text))
        if refusal := delta.get("refusal"):
            self._declined = True
            self._size += len(refusal)
            self.hear(len(refusal))
        for piece in delta.get("tool_calls") or ():
            self._add_call(piece)
        if function := delta.get("function_call"):
            self._add_to(self._legacy, "", function)

    def _add_call(self, piece: dict[str, Any]) -> None:
        call_id = piece.get("id") or ""
        function = piece.get("function") or {}
        call = self._call_of(piece.get("index"), call_id, named=bool(function.get("name")))
        if call is not None:
            self._add_to(call, call_id, function)

    def _call_of(self, index: object, call_id: str, *, named: bool) -> _PartialCall | None:
        """The call that a piece belongs to, or a new one; None when there are too many."""
        if not isinstance(index, int):
            last = self._calls[-1] if self._calls else None
            if last is not None and (call_id == last.id if call_id else not named):
                return last
            index = len(self._calls)
        call = self._by_index.get(index)
        # Some servers number every call 0: another id is another call.
        if call is not None and not (call_id and call.id and call_id != call.id):
            return call
        if len(self._calls) >= MOST_CALLS:
            return None
        call = self._by_index[index] = _PartialCall()
        self._calls.append(call)
        return call

    def _add_to(self, call: _PartialCall, call_id: str, function: dict[str, Any]) -> None:
        call.id = call.id or call_id
        name, given = function.get("name") or "", function.get("arguments") or ""
        arguments = given if isinstance(given, str) else orjson.dumps(given).decode()
        self._size += len(call_id) + len(name) + len(arguments)
        # Some servers say the name again with every piece.
        if name and call.names != [name]:
            call.names.append(name)
            self.hear(len(name))
        if arguments:
            call.arguments.append(arguments)
            self.hear(len(arguments))

    def completion(self, asked_model: str, latency_ms: int) -> Completion:
        """The whole answer; a refusal's words are not in it. Raises ModelUnavailable when it was cut."""
        if self.too_long:
            _log.warning("llm_answer_too_long", model=asked_model, characters=self._size)
            return self._without_words("length", asked_model, latency_ms)
        if self._finish_reason is None:
            _log.warning("llm_stream_cut", model=asked_model, pieces=len(self._text))
            raise classify.cut_off()
        if self._finish_reason == "error":
            raise classify.failure(500)
        if self._declined or self._finish_reason in _WITHHELD:
            filtered = self._finish_reason == "content_filter"
            reason = "content_filter" if filtered else "refusal"
            return self._without_words(reason, asked_model, latency_ms)
        return Completion(
            model=self._model or asked_model,
            text=storable("".join(self._text)),
            tool_calls=_finished(self._calls or [self._legacy]),
            finish_reason=self._finish_reason,
            tokens=self._tokens,
            latency_ms=latency_ms,
        )

    def _without_words(self, reason: str, asked_model: str, latency_ms: int) -> Completion:
        return Completion(
            model=self._model or asked_model,
            text="",
            finish_reason=reason,
            tokens=self._tokens,
            latency_ms=latency_ms,
            withheld=self._size,
        )


def _said(content: object) -> str:
    """The text of a delta's content, which some servers send in parts."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    return "".join(part.get("text") for part in content if part.get("type") == "text")


def _finished(calls: Iterable[_PartialCall]) -> tuple[ToolCall, ...]:
    whole = [call for call in calls if call.names or call.arguments]
    taken: set[str] = set()
    finished = []
    for position, call in enumerate(whole):
        call_id = _safe_id(call.id, position, taken)
        taken.add(call_id)
        name, arguments = storable("".join(call.names)), storable("".join(call.arguments))
        finished.append(ToolCall(id=call_id, name=name, arguments=arguments))
    return tuple(finished)


def _safe_id(given: str, position: int, taken: set[str]) -> str:
    """The provider's id made safe for a step key; an empty or taken one gets a number."""
    safe = _UNSAFE.sub("-", given[:ID_LIMIT]) or "call"
    candidate, number = safe if given else f"{safe}-{position}", position
    while candidate in taken:
        candidate = f"{safe[: ID_LIMIT - 12]}-{number}"
        number += 1
    return candidate


def safe_name(name: str) -> str:
    """A tool's name as every endpoint takes it back, whatever the model wrote."""
    return _UNSAFE.sub("_", name[:ID_LIMIT]) or "unknown"


def _tokens(usage: object) -> Tokens | None:
    """What the provider says; None unless both numbers are such as can be."""
    told = usage if isinstance(usage, dict) else {}
    match [told.get("prompt_tokens"), told.get("completion_tokens")]:
        case [int(given), int(made)] if 0 <= given < _MOST_TOKENS and 0 <= made < _MOST_TOKENS:
            return Tokens(input=given, output=made)
        case _:
            return None


def _model(value: object) -> str:
    return value if isinstance(value, str) and _MODEL.fullmatch(value) else ""


def _finish(value: object) -> str:
    if not isinstance(value, str) or not value:
        return ""
    word = value[:_WORD_LIMIT].lower()
    word = _OTHER_WORDS.get(word, word)
    return word if word in _FINISHES else "other"


def storable(text: str) -> str:
    """The text with surrogates joined; a lone one, which no store takes, is U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # Before the codec sees them: it calls back into Python for each lone one.
        paired = _LONE.sub("\ufffd", text)
        return paired.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    return text
