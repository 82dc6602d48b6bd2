"""Tavily: a search engine for agents, asked with a key."""

from pydantic import BaseModel

from posthouse.tools.model import SearchHit
from posthouse.tools.search_engine import SearchEngine, SearchRequest, first_words, hit, parsed

# Both are Tavily's own bounds: of a query, and of `max_results`.
_CHARACTERS, _MOST = 400, 20


class _Result(BaseModel):
    title: str | None = None
    url: str
    content: str | None = None


class _Answer(BaseModel):
    results: list[_Result]


def _request(url: str, key: str, query: str, limit: int) -> SearchRequest:
    return SearchRequest(
        "POST",
        f"{url}/search",
        body={
            "query": first_words(query, characters=_CHARACTERS),
            "max_results": min(limit, _MOST),
            "search_depth": "basic",
        },
        headers={"authorization": f"Bearer {key}"},
    )


def _hits(body: bytes) -> tuple[SearchHit, ...]:
    results = parsed(_Answer, body).results
    return tuple(hit(found.title, found.url, found.content) for found in results)


tavily = SearchEngine("tavily", "https://api.tavily.com", True, _request, _hits)
