import os
import subprocess
import sys
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.tools.text import decoded, named_charset, plain_text, readable_html, readable_text

ARTICLE = (
    "<html><head><title>On &amp; about\n horses</title><style>p{}</style></head><body>"
    "<nav><a href=/>Home</a></nav><article><h1>Horses</h1>"
    + "<p>A courier changed <b>hor</b>ses at every posthouse and rode on.</p>" * 8
    + "<script>alert('no')</script></article></body></html>"
)


def test_the_main_text_and_the_title_of_a_page() -> None:
    page = readable_html(ARTICLE)
    assert page.title == "On & about horses"
    assert "changed" in page.text
    assert "alert" not in page.text


def test_without_trafilatura_the_plain_text_is_read() -> None:
    program = (
        "import sys; sys.modules['trafilatura'] = None\n"  # as when the extra is not installed
        "from posthouse.tools.text import readable_html\n"
        "page = readable_html(sys.argv[1]); print(page.title); print(page.text)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, ARTICLE],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    title, heading, _, paragraph = answer.stdout.splitlines()[:4]
    assert (title, heading) == ("On & about horses", "Horses")
    assert paragraph == "A courier changed horses at every posthouse and rode on."
    assert "alert" not in answer.stdout
    assert "Home" not in answer.stdout


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("", ""),
        ("plain", "plain"),
        ("a<b>b</b>c<p>d<br>e", "abc\n\nd\n\ne"),
        ("1 < 2 <3 > 2", "1 < 2 <3 > 2"),
        ("a<!-- <p>no -->b", "ab"),
        ("a<!-- never closed", "a"),
        ("a<!doctype html>b<?php x?>c</>d", "abcd"),
        ("a<SCRIPT>x < y</Script >b", "a\n\nb"),
        ("a<script>never closed", "a"),
        ("a<p class='x", "a"),
        ("<p title='>'>a", "a"),
        ("<head><title>no</title><p>a", "a"),
        ("<nav>a<p>b", "a\n\nb"),
        ("<nav>no</nav>b", "b"),
        ("<title>a", "a"),
        ("&lt;p&gt; &#65; &nosuch;", "<p> A &nosuch;"),
        ("&#" + "9" * 5000 + ";", "&#" + "9" * 5000 + ";"),
    ],
)
def test_tags_are_left_out(markup: str, text: str) -> None:
    assert plain_text(markup) == text


@given(st.text("<>/!-?abp&#; \n\"'=") | st.text())
def test_any_markup_is_read(markup: str) -> None:
    plain_text(markup)


@pytest.mark.parametrize(
    "piece",
    [
        "<",
        "<!--",
        "<script>",
        "</script>",
        "<p>x",
        "<div>",
        "<title",
        "<title>",
        "<h1>",
        "&",
        "&#9",
    ],
)
def test_a_megabyte_of_hostile_markup_takes_linear_time(piece: str) -> None:
    markup = piece * (1_000_000 // len(piece))
    begun = perf_counter()
    readable_html(markup)
    assert perf_counter() - begun < 8  # seconds; quadratic work would take minutes


HOSTILE = {
    "attributes": "<p " + " ".join(f"a{n}=1" for n in range(120_000)) + ">text</p>",
    "attributes behind quotes": "<p " + " ".join(f"a{n}='>'" for n in range(100_000)) + ">text",
    "depth": "<div>" * 90_000 + "text" + "</div>" * 90_000,
    "depth below the limit": "<div>" * 25_000 + "text",
    "crossed": "<b><p>" * 14_000 + "text",
    "names": "".join(f"<p id=i{n}>text" for n in range(28_000)),
    "never closed": "<p>some text here. " * 28_000,
    "entities": "&amp;" * 200_000 + "text",
    "nested entities": "<!DOCTYPE a [<!ENTITY b '&c;&c;'>]>" + "&b;" * 300_000 + "text",
    "null bytes": "<p>text" + "\0" * 1_000_000,
    "null bytes between": "<p>te\0xt" * 28_000,
    "lone surrogates": "<p>text\ud800</p>" * 14_000,
    "control characters": "<p>text\x01\x0b\x1f\ufffe</p>" * 14_000,
    "declared otherwise": "<?xml version='1.0' encoding='utf-32'?><p>text</p>" * 1000,
    "tables": "<table><tr><td>text" * 9_000,
    "an endless word": "<p>text" + "a" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_of_hostile_html_is_read_in_bounded_time(name: str) -> None:
    begun = perf_counter()
    page = readable_html(HOSTILE[name])
    assert perf_counter() - begun < 15  # seconds; attributes alone would take a minute
    assert "text" in page.text.replace("\0", "")
    page.text.encode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# The title #\n\ntext", "The title"),
        ("---\nfront: matter\n---\n\n## Second level", "Second level"),
        ("#no heading\n\nbut text", ""),
        ("", ""),
    ],
)
def test_the_title_of_a_text_is_its_first_heading(text: str, title: str) -> None:
    assert readable_text(text).title == title
    assert readable_text(text).text == text


@pytest.mark.parametrize(
    ("body", "declared", "text"),
    [
        ("größe".encode(), None, "größe"),
        ("größe".encode("latin-1"), "ISO-8859-1", "größe"),
        ("größe".encode("latin-1"), None, "gr\ufffd\ufffde"),
        ("\ufeffgröße".encode(), "latin-1", "größe"),
        ("größe".encode("utf-16"), None, "größe"),
        (b"plain", "no-such-charset", "plain"),
        (b"a\x1b.J\x1bN\xd2b", "iso2022_jp_2", "a\x1b.J\x1bN\ufffdb"),  # the codec breaks
        (b"plain", "hex", "plain"),
        (b"xn--a", "punycode", "xn--a"),
        (b"\\ud800", "unicode_escape", "\\ud800"),
        (b"\xff\xfe\x00\xd8", None, "\ufffd"),
    ],
)
def test_bytes_become_text(body: bytes, declared: str | None, text: str) -> None:
    assert decoded(body, declared) == text


@given(st.binary(), st.sampled_from([None, "utf-8", "utf-16", "shift_jis", "utf-32", "cp1252"]))
def test_any_bytes_become_text_that_can_be_stored(body: bytes, declared: str | None) -> None:
    decoded(body, declared).encode()


def test_a_page_may_name_its_charset() -> None:
    assert named_charset(b'<meta charset="latin-1">') == "latin-1"
    assert named_charset(b"<meta content='text/html; charset=koi8-r'>") == "koi8-r"
    assert named_charset(b"<p>") is None
