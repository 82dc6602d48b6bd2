from pathlib import Path

import pytest

from posthouse.errors import ToolFailed
from posthouse.tools.engines.brave import brave
from posthouse.tools.model import SearchHit

RECORDED = (Path(__file__).parent / "answers" / "brave.json").read_bytes()


def test_it_is_asked_as_documented() -> None:
    request = brave.request("https://api.search.brave.com", "the-key", "post horses", 5)
    assert (request.method, request.body) == ("GET", None)
    assert request.url == "https://api.search.brave.com/res/v1/web/search"
    assert request.params == {
        "q": "post horses",
        "count": "5",
        "result_filter": "web",
        "text_decorations": "false",
    }
    assert request.headers == {"x-subscription-token": "the-key"}
    assert not request.secret_params


def test_its_bounds_are_kept() -> None:
    request = brave.request("https://x", "k", "horse " * 60, 100)
    assert request.params["count"] == "20"
    assert request.params["q"].split() == ["horse"] * 50
    assert len(brave.request("https://x", "k", "h" * 500, 5).params["q"]) == 400


def test_its_answer_is_read_and_its_markup_becomes_text() -> None:
    assert brave.hits(RECORDED) == (
        SearchHit(
            title="Relays & riders",
            url="https://history.example/relays",
            snippet="A post horse ran one stage; the rider's bag went on.",
        ),
        SearchHit(
            title="Stages of the road", url="https://roads.example/stages?lang=en", snippet=""
        ),
    )


def test_an_answer_without_web_results_is_empty() -> None:
    assert brave.hits(b'{"type": "search", "query": {"original": "x"}}') == ()


@pytest.mark.parametrize("body", [b"{}", b'{"type": "ErrorResponse", "error": {}}', b'{"type": 1}'])
def test_another_form_is_unreadable(body: bytes) -> None:
    with pytest.raises(ToolFailed) as raised:
        brave.hits(body)
    assert raised.value.kind == "unreadable"
