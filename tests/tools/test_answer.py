import json
import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from posthouse.errors import ToolFailed
from posthouse.tools.answer import CUT_MARK, answered, cut, cut_for_json, failed, failed_by
from posthouse.tools.model import Source, ToolAnswer

any_text = st.text(st.characters(codec=None, exclude_categories=()))


class Weather(BaseModel):
    place: str
    degrees: float


@given(any_text, st.integers(0, 60))
def test_a_cut_text_keeps_its_limit(text: str, limit: int) -> None:
    short = cut(text, limit)
    assert len(short.encode()) <= limit
    if len(text.encode("utf-8", "replace")) > limit >= len(CUT_MARK.encode()):
        assert short.endswith(CUT_MARK)


@given(any_text, st.integers(0, 60))
def test_a_text_cut_for_json_keeps_its_limit_with_its_escapes(text: str, limit: int) -> None:
    assert len(orjson.dumps(cut_for_json(text, limit))) - 2 <= limit


def test_a_text_of_escapes_only_is_still_cut_to_much_of_the_limit() -> None:
    assert 900 < len(orjson.dumps(cut_for_json("\0" * 10_000, 1000))) <= 1002


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (None, "null"),
        ({"a": [1, "é"]}, '{"a":[1,"é"]}'),
        (Weather(place="Ulm", degrees=1.5), '{"place":"Ulm","degrees":1.5}'),
        ([math.nan], "[null]"),
    ],
)
def test_a_result_becomes_text(value: object, text: str) -> None:
    assert answered(value, 1000) == ToolAnswer(text=text)


def test_an_answer_keeps_its_sources_and_is_cut_too() -> None:
    source = Source(address="corpus://a.md", title="A")
    answer = answered(ToolAnswer(text="x" * 100, sources=(source,)), 50)
    assert answer.sources == (source,)
    assert len(answer.text.encode()) == 50


def test_a_failure_is_told_in_json() -> None:
    error = ToolFailed("no such page", kind="http_error", status_code=404)
    answer = failed_by(error)
    assert json.loads(answer.text) == {
        "error": "http_error",
        "message": "no such page",
        "retryable": False,
        "status_code": 404,
    }
    assert "status_code" not in json.loads(failed("timeout", "slow", retryable=True).text)


def test_a_failure_with_a_lone_surrogate_or_an_endless_message_is_still_told() -> None:
    answer = failed_by(ToolFailed("\ud800" + "x" * 100_000, kind="odd\ud800"))
    assert answer.problem is not None
    assert len(answer.text) < 3000
