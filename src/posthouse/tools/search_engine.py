"""What a web search engine is: how it is asked, and what of its answer a model may see."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar
from urllib.parse import urldefrag, urlsplit

from pydantic import BaseModel

from posthouse.errors import ToolFailed
from posthouse.tools.answer import clean
from posthouse.tools.guard import MAX_URL
from posthouse.tools.model import SearchHit
from posthouse.tools.text import plain_text

_TITLE_CHARACTERS = 1_000
_SNIPPET_CHARACTERS = 8_000

A = TypeVar("A", bound=BaseModel)


@dataclass(frozen=True)
class SearchRequest:
    """One HTTP request to an engine; a key stands only in what `repr` leaves out.

    `secret_params` join the query where no log and no error sees them; `body` is sent as JSON.
    """

    method: Literal["GET", "POST"]
    url: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, object] | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_params: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class SearchEngine:
    """One search engine as two pure functions; `url` is None when only the operator knows its address.

    `request` takes the address without a slash at its end, the key ("" for none), the query and the
    limit. `hits` takes the body of an answer and raises nothing but ToolFailed.
    """

    name: str
    url: str | None
    needs_key: bool
    request: Callable[[str, str, str, int], SearchRequest]
    hits: Callable[[bytes], tuple[SearchHit, ...]]


def parsed(form: type[A], body: bytes) -> A:
    """The body in the engine's documented form. Raises ToolFailed: unreadable."""
    try:
        # Not pydantic's own parser: it refuses a whole answer for one lone surrogate.
        return form.model_validate(json.loads(body))
    except (ValueError, RecursionError):
        raise ToolFailed(
            "the search engine gave an answer that cannot be read", kind="unreadable"
        ) from None


def first_words(query: str, *, characters: int, words: int | None = None) -> str:
    """The query within an engine's bounds: cut after a whole word, where there is one."""
    short = " ".join(query.split()[:words])
    if len(short) <= characters:
        return short
    return short[: characters + 1].rpartition(" ")[0] or short[:characters]


def hit(title: str | None, url: str | None, snippet: str | None) -> SearchHit:
    """A result of an engine that gives plain text; what is missing is empty."""
    return SearchHit(
        title=_line(title or "", _TITLE_CHARACTERS),
        url=(url or "").strip(),
        snippet=_line(snippet or "", _SNIPPET_CHARACTERS),
    )


def hit_of_markup(title: str | None, url: str | None, snippet: str | None) -> SearchHit:
    """A result of an engine that gives HTML: its tags and character references become text."""
    return hit(
        plain_text((title or "")[:_TITLE_CHARACTERS]),
        url,
        plain_text((snippet or "")[:_SNIPPET_CHARACTERS]),
    )


def presentable(
    hits: Iterable[SearchHit], limit: int, *, secret: str = ""
) -> tuple[SearchHit, ...]:
    """At most `limit` hits at whole http(s) addresses, no page twice, none that shows the secret."""
    kept: dict[str, SearchHit] = {}
    for found in hits:
        if len(kept) >= limit:
            break
        host = _host(found.url)
        if not host or (secret and secret in f"{found.title}\n{found.url}\n{found.snippet}"):
            continue
        named = found if found.title else found.model_copy(update={"title": host})
        kept.setdefault(urldefrag(found.url).url, named)
    return tuple(kept.values())


def _line(text: str, characters: int) -> str:
    return " ".join(clean(text[:characters]).split())


def _host(url: str) -> str:
    """The host of an address that a model may be given, else ""."""
    if len(url) > MAX_URL or not url.isprintable() or " " in url:
        return ""
    try:
        parts = urlsplit(url)
        return parts.hostname or "" if parts.scheme in ("http", "https") else ""
    except ValueError:
        return ""
