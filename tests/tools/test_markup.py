from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.tools.markup import Tag, pieces, tidy


@pytest.mark.parametrize(
    ("markup", "tidied"),
    [
        ("a<p>b</p>", "a<p>b</p>"),
        ("<P CLASS=x Id='y' href=\"z\">", '<p class="x" id="y" href="z">'),
        ("<p onclick=x data-y=z class>", '<p class="">'),
        ("<p class=a class=b>", '<p class="a">'),
        ("<p class='>'><b>", '<p class="&gt;"><b>'),
        ("<p class='\"<'>", '<p class="&quot;&lt;">'),
        ("<p class=a'b>", '<p class="a\'b">'),
        ("<p/class=a/>", '<p class="a/">'),
        ("<br/>", "<br>"),
        ("<p class = x>", '<p class="x">'),
        ("<p =class=x>y", "<p>y"),
        ("<p class='x>never closed", ""),
        ("</p class=x>", "</p>"),
        ("<my-tag>x</my-tag>", "x"),
        ("a<b\0c>d", "ad"),
        ("1 < 2 <3", "1 &lt; 2 &lt;3"),
        ("a<!-- <p> -->b<!doctype x>c<?x?>d", "abcd"),
        ("a<!-->b<!--->c<!--", "abc"),
        ("<script>a<b</script>c", "<script></script>c"),
        ("<svg><path d='M'/></svg>x", "<svg></svg>x"),
        ("a<style>never closed", "a"),
    ],
)
def test_markup_is_made_tidy(markup: str, tidied: str) -> None:
    assert tidy(list(pieces(markup))) == tidied


@given(st.text("<>/!-?abp='\" \n\0&;") | st.text())
def test_what_is_tidy_is_read_alike_once_more(markup: str) -> None:
    once = tidy(list(pieces(markup)))
    assert tidy(list(pieces(once))) == once


def test_a_tag_keeps_little_of_what_it_is_given() -> None:
    [tag] = pieces("<p " + " ".join(f"a{n}=1 class{n}=2" for n in range(100_000)) + " class=x>")
    assert tag == Tag("p", False, {"class": "x"})
    [tag] = pieces(f"<p class='{'x' * 1_000_000}'>")
    assert isinstance(tag, Tag)
    assert len(tag.attributes["class"]) < 10_000


@pytest.mark.parametrize(
    "piece",
    ["<", "<p", "<p ", "<p a='", '<p a="', "<p a=", "<p a='>", "</", "<!", "<!--", "<!-->", "<?",
     "<svg>", "<script>", "</script", "<title>", " a", "a=1 ", "= ", "/", "'", "&"],
)  # fmt: skip
@pytest.mark.parametrize("first", ["", "<p ", "<p a='"])
def test_anything_takes_linear_time(first: str, piece: str) -> None:
    markup = first + piece * (300_000 // len(piece))
    begun = perf_counter()
    tidy(list(pieces(markup)))
    assert perf_counter() - begun < 8  # seconds; quadratic work would take minutes
