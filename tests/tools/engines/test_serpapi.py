from pathlib import Path

import pytest

from posthouse.errors import ToolFailed
from posthouse.tools.engines.serpapi import serpapi
from posthouse.tools.search_engine import presentable

RECORDED = (Path(__file__).parent / "answers" / "serpapi.json").read_bytes()


def test_it_is_asked_as_documented_and_the_key_is_kept_apart() -> None:
    request = serpapi.request("https://serpapi.com", "the-key", "post horses", 5)
    assert (request.method, request.body) == ("GET", None)
    assert request.url == "https://serpapi.com/search.json"
    assert request.params == {"engine": "google", "q": "post horses"}
    assert request.secret_params == {"api_key": "the-key"}
    assert not request.headers
    assert "the-key" not in repr(request)


def test_its_answer_is_read() -> None:
    found = presentable(serpapi.hits(RECORDED), 10)
    assert [(hit.title, hit.url, hit.snippet) for hit in found] == [
        (
            "Relays & riders",
            "https://history.example/relays",
            "A post horse ran one stage; the bag went on ...",
        ),
        ("Stages of the road", "https://roads.example/stages?lang=en", ""),
    ]


def test_nothing_found_is_no_error() -> None:
    body = b'{"search_metadata": {"status": "Success"}, "error": "There are no results."}'
    assert serpapi.hits(body) == ()


def test_a_search_that_failed_there_may_be_tried_again() -> None:
    body = b'{"search_metadata": {"status": "Error"}, "error": "canary of theirs"}'
    with pytest.raises(ToolFailed) as raised:
        serpapi.hits(body)
    assert (raised.value.kind, raised.value.retryable) == ("unavailable", True)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("body", [b"{}", b'{"error": "x"}', b'{"search_metadata": {}}'])
def test_another_form_is_unreadable(body: bytes) -> None:
    with pytest.raises(ToolFailed) as raised:
        serpapi.hits(body)
    assert raised.value.kind == "unreadable"
