"""Exa: a search engine for agents that gives passages of the pages, asked with a key."""

from pydantic import BaseModel

from posthouse.tools.model import SearchHit
from posthouse.tools.search_engine import SearchEngine, SearchRequest, first_words, hit, parsed

# The second is Exa's own bound of `numResults`.
_CHARACTERS, _MOST = 1_000, 100


class _Result(BaseModel):
    title: str | None = None
    url: str
    highlights: list[str] | None = None


class _Answer(BaseModel):
    results: list[_Result]


def _request(url: str, key: str, query: str, limit: int) -> SearchRequest:
    return SearchRequest(
        "POST",
        f"{url}/search",
        body={
            "query": first_words(query, characters=_CHARACTERS),
            "numResults": min(limit, _MOST),
            "type": "auto",
            "contents": {"highlights": True},
        },
        headers={"x-api-key": key},
    )


def _hits(body: bytes) -> tuple[SearchHit, ...]:
    results = parsed(_Answer, body).results
    return tuple(
        hit(found.title, found.url, " … ".join(found.highlights or ())) for found in results
    )


exa = SearchEngine("exa", "https://api.exa.ai", True, _request, _hits)
