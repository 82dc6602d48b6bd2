"""Brave Search: an index of its own, asked with a key."""

from typing import Literal

from pydantic import BaseModel

from posthouse.tools.model import SearchHit
from posthouse.tools.search_engine import (
    SearchEngine,
    SearchRequest,
    first_words,
    hit_of_markup,
    parsed,
)

# Both are Brave's own bounds of a query, and of `count`.
_CHARACTERS, _WORDS, _MOST = 400, 50, 20


class _Result(BaseModel):
    title: str
    url: str
    description: str | None = None


class _Web(BaseModel):
    results: list[_Result]


class _Answer(BaseModel):
    type: Literal["search"]
    web: _Web | None = None


def _request(url: str, key: str, query: str, limit: int) -> SearchRequest:
    return SearchRequest(
        "GET",
        f"{url}/res/v1/web/search",
        params={
            "q": first_words(query, characters=_CHARACTERS, words=_WORDS),
            "count": str(min(limit, _MOST)),
            "result_filter": "web",
            "text_decorations": "false",
        },
        headers={"x-subscription-token": key},
    )


def _hits(body: bytes) -> tuple[SearchHit, ...]:
    web = parsed(_Answer, body).web
    results = web.results if web else []
    return tuple(hit_of_markup(found.title, found.url, found.description) for found in results)


brave = SearchEngine("brave", "https://api.search.brave.com", True, _request, _hits)
