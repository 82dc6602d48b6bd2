from pathlib import Path

import pytest

from posthouse.errors import ToolFailed
from posthouse.tools.engines.tavily import tavily
from posthouse.tools.model import SearchHit

RECORDED = (Path(__file__).parent / "answers" / "tavily.json").read_bytes()


def test_it_is_asked_as_documented() -> None:
    request = tavily.request("https://api.tavily.com", "tvly-key", "post horses", 5)
    assert request.method == "POST"
    assert request.url == "https://api.tavily.com/search"
    assert request.body == {"query": "post horses", "max_results": 5, "search_depth": "basic"}
    assert request.headers == {"authorization": "Bearer tvly-key"}
    assert not request.params
    assert not request.secret_params


def test_its_bounds_are_kept() -> None:
    request = tavily.request("https://x", "k", "horse " * 100, 100)
    assert request.body is not None
    assert request.body["max_results"] == 20
    assert 390 < len(str(request.body["query"])) <= 400


def test_its_answer_is_read() -> None:
    assert tavily.hits(RECORDED) == (
        SearchHit(
            title="Relays & riders",
            url="https://history.example/relays",
            snippet="A post horse ran one stage. The bag went on.",
        ),
        SearchHit(
            title="Stages of the road", url="https://roads.example/stages?lang=en", snippet=""
        ),
    )


@pytest.mark.parametrize("body", [b"{}", b'{"detail": {"error": "x"}}', b'{"results": [{}]}'])
def test_another_form_is_unreadable(body: bytes) -> None:
    with pytest.raises(ToolFailed) as raised:
        tavily.hits(body)
    assert raised.value.kind == "unreadable"
