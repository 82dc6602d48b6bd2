"""SearXNG: a metasearch engine that the operator runs; a key is for a proxy in front of it."""

from pydantic import BaseModel

from posthouse.tools.model import SearchHit
from posthouse.tools.search_engine import SearchEngine, SearchRequest, first_words, hit, parsed

_CHARACTERS = 1_000


class _Result(BaseModel):
    url: str | None = None
    title: str | None = None
    content: str | None = None


class _Answer(BaseModel):
    results: list[_Result]


def _request(url: str, key: str, query: str, _limit: int) -> SearchRequest:
    # It has no parameter for the number of results: the first page is what there is.
    return SearchRequest(
        "GET",
        f"{url}/search",
        params={"q": first_words(query, characters=_CHARACTERS), "format": "json"},
        headers={"authorization": f"Bearer {key}"} if key else {},
    )


def _hits(body: bytes) -> tuple[SearchHit, ...]:
    results = parsed(_Answer, body).results
    return tuple(hit(found.title, found.url, found.content) for found in results)


searxng = SearchEngine("searxng", None, False, _request, _hits)
