from pathlib import Path

import pytest

from posthouse.errors import ToolFailed
from posthouse.tools.engines.searxng import searxng
from posthouse.tools.search_engine import presentable

RECORDED = (Path(__file__).parent / "answers" / "searxng.json").read_bytes()


def test_it_is_asked_as_documented() -> None:
    request = searxng.request("http://127.0.0.1:8080/searx", "", "post horses", 5)
    assert (request.method, request.body) == ("GET", None)
    assert request.url == "http://127.0.0.1:8080/searx/search"
    assert request.params == {"q": "post horses", "format": "json"}
    assert not request.headers
    assert not request.secret_params


def test_a_key_is_for_a_proxy_in_front_of_it() -> None:
    assert searxng.request("http://x", "the-key", "q", 5).headers == {
        "authorization": "Bearer the-key"
    }


def test_its_answer_is_read_and_what_looks_like_a_tag_stays() -> None:
    found = searxng.hits(RECORDED)
    assert [hit.url for hit in found] == [
        "https://history.example/relays", "", "https://roads.example/stages?lang=en"
    ]  # fmt: skip
    assert found[0].snippet == "A post horse ran one stage; the map type is vector<int>."
    assert len(presentable(found, 10)) == 2


@pytest.mark.parametrize("body", [b"{}", b'{"results": null}', b'{"results": [1]}'])
def test_another_form_is_unreadable(body: bytes) -> None:
    with pytest.raises(ToolFailed) as raised:
        searxng.hits(body)
    assert raised.value.kind == "unreadable"
