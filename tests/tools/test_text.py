import os
import subprocess
import sys
from collections.abc import Callable
from time import thread_time

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


@pytest.fixture
def share(long: bool) -> int:
    """Which part of the megabyte; the long form takes the whole."""
    return 1 if long else 4


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
    text = plain_text(markup)
    assert len(text) <= len(markup)
    paragraphs = text.split("\n\n") if text else []
    assert [" ".join(paragraph.split()) for paragraph in paragraphs] == paragraphs
    assert "" not in paragraphs


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
def test_a_megabyte_of_hostile_markup_takes_linear_time(piece: str, share: int) -> None:
    markup = piece * (1_000_000 // share // len(piece))
    begun = thread_time()
    readable_html(markup)
    assert thread_time() - begun < 8 / share  # seconds; quadratic work would take minutes


HOSTILE: dict[str, Callable[[int], str]] = {
    "attributes": lambda share: (
        "<p " + " ".join(f"a{n}=1" for n in range(120_000 // share)) + ">text</p>"
    ),
    "attributes behind quotes": lambda share: (
        "<p " + " ".join(f"a{n}='>'" for n in range(100_000 // share)) + ">text"
    ),
    "depth": lambda share: "<div>" * (90_000 // share) + "text" + "</div>" * (90_000 // share),
    "depth below the limit": lambda share: "<div>" * (25_000 // share) + "text",
    "crossed": lambda share: "<b><p>" * (14_000 // share) + "text",
    "names": lambda share: "".join(f"<p id=i{n}>text" for n in range(28_000 // share)),
    "never closed": lambda share: "<p>some text here. " * (28_000 // share),
    "entities": lambda share: "&amp;" * (200_000 // share) + "text",
    "nested entities": lambda share: (
        "<!DOCTYPE a [<!ENTITY b '&c;&c;'>]>" + "&b;" * (300_000 // share) + "text"
    ),
    "null bytes": lambda share: "<p>text" + "\0" * (1_000_000 // share),
    "null bytes between": lambda share: "<p>te\0xt" * (28_000 // share),
    "lone surrogates": lambda share: "<p>text\ud800</p>" * (14_000 // share),
    "control characters": lambda share: "<p>text\x01\x0b\x1f\ufffe</p>" * (14_000 // share),
    "declared otherwise": lambda share: (
        "<?xml version='1.0' encoding='utf-32'?><p>text</p>" * (1000 // share)
    ),
    "tables": lambda share: "<table><tr><td>text" * (9_000 // share),
    "an endless word": lambda share: "<p>text" + "a" * (1_000_000 // share),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_of_hostile_html_is_read_in_bounded_time(name: str, share: int) -> None:
    markup = HOSTILE[name](share)
    begun = thread_time()
    page = readable_html(markup)
    assert thread_time() - begun < 15 / share  # seconds; attributes alone would take a minute
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
    text = decoded(body, declared)
    assert text.encode().decode() == text


def test_a_page_may_name_its_charset() -> None:
    assert named_charset(b'<meta charset="latin-1">') == "latin-1"
    assert named_charset(b"<meta content='text/html; charset=koi8-r'>") == "koi8-r"
    assert named_charset(b"<p>") is None
