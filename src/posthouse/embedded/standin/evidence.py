"""What a conversation has brought so far: the task, what was searched and found, what was read."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urldefrag

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from posthouse.llm.messages import AssistantMessage, Message, ToolMessage, UserMessage
from posthouse.llm.outside import unmarked, without_blocks

SEARCH, EXTRACT = "search_web", "extract_content"

_TOPIC = re.compile(
    r"^[\s*_#>-]*topic[*_]*\s*:[*_\s]*?(\S.*?)[*_\s]*$", re.IGNORECASE | re.MULTILINE
)
_GOAL = re.compile(r"^Goal:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_DEPTH = re.compile(r"^[\s*_#>-]*depth[*_]*\s*:[*_\s]*(\w+)", re.IGNORECASE | re.MULTILINE)
_DEEP = re.compile(r"\bdeep\b", re.IGNORECASE)

_Model = TypeVar("_Model", bound=BaseModel)


class Hit(BaseModel):
    """One search result."""

    url: str = Field(min_length=1)
    title: str = ""
    snippet: str = ""


class ReadPage(BaseModel):
    """The text of one document that was read."""

    url: str = Field(min_length=1)
    title: str = ""
    text: str


@dataclass(frozen=True)
class Task:
    """What is asked: its topic, whether it is to be looked into deeply, the goal behind it, the whole text."""

    topic: str
    deep: bool
    goal: str = ""
    text: str = ""


@dataclass(frozen=True)
class Evidence:
    """What the tools were asked and what they returned since the task was given.

    `hits` holds what each search found; `asked` the arguments of each call that wanted a page;
    `search_failed` says that every search was answered with an error.
    """

    hits: tuple[tuple[Hit, ...], ...] = ()
    pages: tuple[ReadPage, ...] = ()
    searched: bool = False
    search_failed: bool = False
    asked: tuple[str, ...] = ()
    failures: int = 0


def task_of(messages: tuple[Message, ...]) -> Task:
    """The task that the conversation is about now."""
    text = _task_text(messages)
    said = without_blocks(text)
    goal = _GOAL.search(said)
    topic = _TOPIC.search(said) or goal
    depth = _DEPTH.search(said)
    deep = depth[1].lower() == "deep" if depth else _DEEP.search(said) is not None
    return Task(
        topic=(topic[1] if topic else said).strip(),
        deep=deep,
        goal=goal[1] if goal else "",
        text=text,
    )


def evidence_of(messages: tuple[Message, ...]) -> Evidence:
    """Everything that the tools brought for the task; what cannot be read is passed over."""
    since = since_task(messages)
    calls = [c for m in since if isinstance(m, AssistantMessage) for c in m.tool_calls]
    told = [(m.call_id, unmarked(m.text)) for m in since if isinstance(m, ToolMessage)]
    results = [_parsed(text) for _, text in told]
    hits = [r for r in results if isinstance(r, tuple)]
    pages = {_place(r.url): r for r in reversed(results) if isinstance(r, ReadPage)}
    searches = {call.id for call in calls if call.name == SEARCH}
    found = [text for call_id, text in told if call_id in searches]
    return Evidence(
        hits=tuple(hits),
        pages=tuple(reversed(pages.values())),
        searched=bool(hits) or any(c.name == SEARCH for c in calls),
        search_failed=bool(found) and all(map(_is_problem, found)),
        asked=tuple(c.arguments for c in calls if c.name == EXTRACT),
        failures=sum(_is_problem(text) for _, text in told),
    )


def since_task(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """What came after the task that the conversation is about now."""
    return messages[_task_index(messages) + 1 :]


def unread(evidence: Evidence, limit: int) -> tuple[Hit, ...]:
    """At most `limit` distinct documents not asked for yet: each search's best in turn."""
    best: dict[str, Hit] = {}
    for hit in _in_turn(evidence.hits):
        best.setdefault(_place(hit.url), hit)
    asked = {_place(url) for text in evidence.asked for url in _strings(_json(text))}
    return tuple(hit for place, hit in best.items() if place not in asked)[:limit]


def _in_turn(searches: tuple[tuple[Hit, ...], ...]) -> Iterator[Hit]:
    for rank in range(max(map(len, searches), default=0)):
        yield from (hits[rank] for hits in searches if rank < len(hits))


def _task_index(messages: tuple[Message, ...]) -> int:
    """The last user message with a topic or a goal; without any, the last that follows no result."""
    asked = [i for i, message in enumerate(messages) if isinstance(message, UserMessage)]
    with_topic = [i for i in asked if _names_its_topic(messages[i])]
    opening = [i for i in asked if not _follows_result(messages, i)]
    return (with_topic or opening or asked or [-1])[-1]


def _names_its_topic(message: Message) -> bool:
    said = without_blocks(message.text)
    return (_TOPIC.search(said) or _GOAL.search(said)) is not None


def _follows_result(messages: tuple[Message, ...], index: int) -> bool:
    """Whether what the user says there comes after a tool's answer, directly or after other such words."""
    while index and isinstance(messages[index - 1], UserMessage):
        index -= 1
    return index > 0 and isinstance(messages[index - 1], ToolMessage)


def _task_text(messages: tuple[Message, ...]) -> str:
    index = _task_index(messages)
    return messages[index].text if index >= 0 else ""


def _place(url: str) -> str:
    return urldefrag(url)[0] if "://" in url else url


def _parsed(text: str) -> tuple[Hit, ...] | ReadPage | None:
    """Search results, a page, or None; of a text that was cut off, what is whole in it."""
    match _json(text):
        case {"results": list(results)}:
            hits = (_validated(Hit, _addressed(result)) for result in results)
            return tuple(hit for hit in hits if hit)
        case dict():
            return _validated(ReadPage, _addressed(_json(text, cut_strings=True)))
        case _:
            return None


def _json(text: str, *, cut_strings: bool = False) -> object:
    try:
        value: object = from_json(text, allow_partial="trailing-strings" if cut_strings else True)
    except ValueError:
        return None
    return value


def _is_problem(text: str) -> bool:
    match _json(text):
        case {"error": str(error)} if error:
            return True
        case _:
            return False


def _addressed(value: object) -> object:
    """The object with its address under `url`, whichever of the two names it came under."""
    match value:
        case {"address": address, **others} if "url" not in others:
            return {**others, "url": address}
        case _:
            return value


def _validated(kind: type[_Model], value: object) -> _Model | None:
    try:
        return kind.model_validate(value)
    except ValidationError:
        return None


def _strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for item in value.values():
                yield from _strings(item)
        case list():
            for item in value:
                yield from _strings(item)
        case _:
            return
