from pathlib import Path

import pytest

from posthouse.errors import ToolFailed
from posthouse.tools.engines.exa import exa
from posthouse.tools.search_engine import presentable

RECORDED = (Path(__file__).parent / "answers" / "exa.json").read_bytes()


def test_it_is_asked_as_documented() -> None:
    request = exa.request("https://api.exa.ai", "the-key", "post horses", 5)
    assert request.method == "POST"
    assert request.url == "https://api.exa.ai/search"
    assert request.body == {
        "query": "post horses",
        "numResults": 5,
        "type": "auto",
        "contents": {"highlights": True},
    }
    assert request.headers == {"x-api-key": "the-key"}
    assert not request.params
    assert not request.secret_params


def test_its_answer_is_read_and_a_page_without_a_title_is_called_by_its_host() -> None:
    found = presentable(exa.hits(RECORDED), 10)
    assert [(hit.title, hit.url, hit.snippet) for hit in found] == [
        (
            "Relays & riders",
            "https://history.example/relays",
            "A post horse ran one stage. … The bag went on.",
        ),
        ("roads.example", "https://roads.example/stages?lang=en", ""),
    ]


@pytest.mark.parametrize("body", [b"{}", b'{"error": "x", "tag": "y"}', b'{"results": {}}'])
def test_another_form_is_unreadable(body: bytes) -> None:
    with pytest.raises(ToolFailed) as raised:
        exa.hits(body)
    assert raised.value.kind == "unreadable"
