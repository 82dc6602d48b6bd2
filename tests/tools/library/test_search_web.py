import json
from typing import Any

from posthouse.tools.library.search_web import search_web
from posthouse.tools.model import SearchHit, ToolContext


async def test_it_gives_title_address_and_snippet(shelf: Any, context: ToolContext) -> None:
    shelf.hits = (SearchHit(title="A", url="corpus://a.md", snippet="about a"),)
    answer = await search_web.call(context, '{"query": "horses"}')
    assert json.loads(answer.text) == {
        "results": [{"title": "A", "url": "corpus://a.md", "snippet": "about a"}]
    }
    assert shelf.asked == [("horses", 5)]
    assert answer.sources == ()


async def test_endless_hits_stay_json(shelf: Any, context: ToolContext) -> None:
    hit = SearchHit(title='"' * 10_000, url="https://example.org/", snippet="\0" * 10_000)
    shelf.hits = (hit,) * 20
    answer = await search_web.call(context, '{"query": "horses", "max_results": 10}')
    assert len(json.loads(answer.text)["results"]) == 10


async def test_the_number_of_results_has_bounds(shelf: Any, context: ToolContext) -> None:
    for number in (0, 11):
        answer = await search_web.call(context, json.dumps({"query": "a", "max_results": number}))
        assert answer.problem is not None
        assert answer.problem.error == "invalid_arguments"
    assert shelf.asked == []
