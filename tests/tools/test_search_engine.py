import importlib
import json
import pkgutil
from contextlib import suppress
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.errors import ToolFailed
from posthouse.tools import engines
from posthouse.tools.model import SearchHit
from posthouse.tools.search import search_engines
from posthouse.tools.search_engine import (
    SearchEngine,
    first_words,
    hit,
    hit_of_markup,
    presentable,
)

ENGINES = search_engines()
FIELDS = st.sampled_from(
    ["type", "search", "web", "results", "url", "title", "description", "content", "highlights",
     "search_metadata", "status", "Error", "organic_results", "link", "snippet"]
)  # fmt: skip
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | FIELDS,
    lambda inner: st.lists(inner) | st.dictionaries(FIELDS | st.text(), inner),
    max_leaves=5,
)
NEARLY_RIGHT = st.lists(st.dictionaries(FIELDS, ANY_JSON)).map(
    lambda results: {
        "type": "search",
        "web": {"results": results},
        "results": results,
        "search_metadata": {"status": "Success"},
        "organic_results": results,
    }
)


def test_there_are_five_each_with_the_name_of_its_file() -> None:
    assert set(ENGINES) == {"brave", "searxng", "tavily", "serpapi", "exa"}
    for found in pkgutil.iter_modules(engines.__path__):
        module = importlib.import_module(f"{engines.__name__}.{found.name}")
        entries = [value for value in vars(module).values() if isinstance(value, SearchEngine)]
        assert [entry.name for entry in entries] == [found.name]


@pytest.mark.parametrize("name", ENGINES)
@given(answer=ANY_JSON | NEARLY_RIGHT)
def test_any_json_is_read_or_unreadable(name: str, answer: object) -> None:
    found: tuple[SearchHit, ...] = ()
    with suppress(ToolFailed):
        found = presentable(ENGINES[name].hits(json.dumps(answer).encode()), 10)
    for page in found:
        assert page.url.lower().startswith(("http://", "https://"))
        assert page.model_dump_json()


@pytest.mark.parametrize("name", ENGINES)
@given(body=st.binary())
def test_any_bytes_are_read_or_unreadable(name: str, body: bytes) -> None:
    with pytest.raises(ToolFailed) as raised:
        ENGINES[name].hits(body)
    assert raised.value.kind == "unreadable"


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    "body",
    [b"", b"<html>no</html>", b"[" * 100_000, b"9" * 5_000, b'{"a":' * 50_000, b"\xff\xfe\x00",
     b'"\\ud800"', b"null", b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_what_breaks_parsers_is_unreadable(name: str, body: bytes) -> None:
    with pytest.raises(ToolFailed) as raised:
        ENGINES[name].hits(body)
    assert raised.value.kind == "unreadable"


HOSTILE = ["<" * 900_000, "<a " * 300_000, "<!--" * 250_000, "&" * 900_000, "&#1" * 300_000,
           "<script>" * 120_000, "a<b>" * 250_000, " " * 900_000, "\n<p>" * 250_000]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:8].strip())
def test_a_hostile_answer_costs_no_time(text: str) -> None:
    body = json.dumps(
        {"type": "search", "web": {"results": [{"title": "a", "url": "http://a/", "description": text}]}}
    )  # fmt: skip
    started = perf_counter()
    presentable(ENGINES["brave"].hits(body.encode()), 10)
    assert perf_counter() - started < 1


def test_a_lone_surrogate_costs_one_character_and_not_the_answer() -> None:
    body = rb'{"results": [{"title": "a\ud800b", "url": "http://a.example/", "content": "\udfff"}]}'
    (found,) = ENGINES["tavily"].hits(body)
    assert (found.title, found.snippet) == ("a?b", "?")


def test_markup_becomes_text() -> None:
    found = hit_of_markup(
        "<b>A</b> &amp; B", " http://a/ ", "x<br>y &lt;p&gt; <script>z()</script>"
    )
    assert found == SearchHit(title="A & B", url="http://a/", snippet="x y <p>")


def test_texts_are_one_line_and_short() -> None:
    found = hit(None, None, "a\n\tb" * 10_000)
    assert (found.title, found.url) == ("", "")
    assert found.snippet.startswith("a ba b")
    assert len(found.snippet) <= 8_000


def at(url: str, title: str = "t") -> SearchHit:
    return SearchHit(title=title, url=url, snippet="")


@pytest.mark.parametrize(
    "url",
    ["", "ftp://a/", "javascript:alert(1)", "file:///etc/passwd", "//a.example/", "a.example",
     "http://", "http:///x", "https://a b/", "http://a/\n", "http://[::1", "corpus://a.md",
     "http://a/\ud800", "http://a/" + "x" * 2048, "data:text/html,x"],
)  # fmt: skip
def test_other_addresses_are_dropped(url: str) -> None:
    assert presentable([at(url), at("https://b.example/")], 5) == (at("https://b.example/"),)


def test_a_page_is_shown_once_and_no_more_than_the_limit() -> None:
    pages = [at("http://a/"), at("http://a/#part", "again"), at("HTTP://b/"), at("http://c/")]
    assert presentable(pages, 2) == (at("http://a/"), at("HTTP://b/"))
    assert presentable(pages, 0) == ()


def test_a_hit_that_shows_the_secret_is_dropped() -> None:
    pages = [at("http://a/?k=the-secret"), at("http://b/", "the-secret"), at("http://c/")]
    assert presentable(pages, 5, secret="the-secret") == (at("http://c/"),)


@given(st.lists(st.builds(hit, st.text(), st.text() | st.just("http://a.example"), st.text())))
def test_whatever_is_found_can_be_stored(pages: list[SearchHit]) -> None:
    for page in presentable(pages, 3):
        assert page.model_dump_json().encode()


def test_a_query_is_cut_after_a_word() -> None:
    assert first_words("  of  post horses ", characters=100) == "of post horses"
    assert first_words("of post horses", characters=7) == "of post"
    assert first_words("of post horses", characters=9) == "of post"
    assert first_words("posthouses", characters=4) == "post"
    assert first_words("a b c", characters=100, words=2) == "a b"


@given(st.text(), st.integers(1, 50), st.integers(1, 10) | st.none())
def test_a_query_keeps_its_bounds(query: str, characters: int, words: int | None) -> None:
    short = first_words(query, characters=characters, words=words)
    assert len(short) <= characters
    assert words is None or len(short.split()) <= words
    assert bool(short) == bool(query.strip())
