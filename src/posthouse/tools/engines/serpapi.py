"""SerpApi: Google's results as JSON, asked with a key that it takes only in the query."""

from pydantic import BaseModel, Field

from posthouse.errors import ToolFailed
from posthouse.tools.model import SearchHit
from posthouse.tools.search_engine import SearchEngine, SearchRequest, first_words, hit, parsed

_CHARACTERS = 1_000


class _Result(BaseModel):
    title: str | None = None
    link: str | None = None
    snippet: str | None = None


class _Metadata(BaseModel):
    status: str


class _Answer(BaseModel):
    search_metadata: _Metadata
    # Missing when nothing was found; `error` then says so, and the status is still Success.
    organic_results: list[_Result] = Field(default_factory=list)


def _request(url: str, key: str, query: str, _limit: int) -> SearchRequest:
    # The page has ten results, and no parameter makes it another number.
    return SearchRequest(
        "GET",
        f"{url}/search.json",
        params={"engine": "google", "q": first_words(query, characters=_CHARACTERS)},
        secret_params={"api_key": key},
    )


def _hits(body: bytes) -> tuple[SearchHit, ...]:
    answer = parsed(_Answer, body)
    if answer.search_metadata.status == "Error":
        raise ToolFailed("the search engine could not search", kind="unavailable", retryable=True)
    return tuple(hit(found.title, found.link, found.snippet) for found in answer.organic_results)


serpapi = SearchEngine("serpapi", "https://serpapi.com", True, _request, _hits)
