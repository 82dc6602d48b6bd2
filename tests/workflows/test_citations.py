import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.journal.model import SourceRead
from posthouse.workflows.citations import cited_addresses, cited_unread, with_sources

A = SourceRead("corpus://a.md", "The  first\npage", "s/1")
B = SourceRead("https://example.org/wiki/Post_(mail)", "Post", "s/2")


def test_a_report_without_a_list_gets_one() -> None:
    report = with_sources("# Posts\n\nHorses [1].", [A, B])
    assert report.endswith(
        "## Sources\n\n1. The first page - <corpus://a.md>\n2. Post - <https://example.org/wiki/Post_(mail)>\n"
    )


@pytest.mark.parametrize(
    "heading",
    ["## Sources", "### 4. References", "**Sources**", "# SOURCES READ", "## Bibliography"],
)
def test_a_report_with_a_list_keeps_it(heading: str) -> None:
    report = f"# Posts\n\n{heading}\n\n[1] The first page (corpus://a.md)\n"
    assert with_sources(report, [A]) == report


def test_a_word_in_the_text_is_no_list() -> None:
    assert "## Sources" in with_sources("Sources differ on this.", [A])


def test_nothing_read_is_said() -> None:
    assert "no document was read" in with_sources("From memory.", [])


def test_addresses_are_found_wherever_they_stand() -> None:
    text = (
        "See [1](corpus://a.md), [[2]](https://example.org/wiki/Post_(mail)), <https://x.org/b>, "
        "https://y.org/c. And (https://z.org/d), https://y.org/c; not a:b or http:."
    )
    assert cited_addresses(text) == (
        "corpus://a.md",
        "https://example.org/wiki/Post_(mail)",
        "https://x.org/b",
        "https://y.org/c",
        "https://z.org/d",
    )


def test_what_was_cited_but_not_read_is_named() -> None:
    text = "[1](corpus://a.md#part) and [2](https://made.up/page)\n\n## Sources\n\nall"
    assert cited_unread(text, [A]) == ("https://made.up/page",)
    report = with_sources(text, [A])
    assert report.endswith(
        "## Cited but not read\n\nNothing here vouches for these:\n\n- https://made.up/page\n"
    )


def test_the_note_is_short_however_much_was_cited() -> None:
    text = " ".join(f"https://made.up/{number}" for number in range(1000))
    note = with_sources(text, [A]).partition("## Cited but not read")[2]
    assert note.endswith("- https://made.up/99\n- and 900 more\n")
    long = with_sources("https://made.up/" + "x" * 100_000, [A])
    assert len(long) < 101_000


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("1.https://a.b/c", "https://a.b/c"),
        ("_https://a.b/c_", "https://a.b/c"),
        ("siehe:https://a.b/c!", "https://a.b/c"),
        ("HTTPS://A.b", "HTTPS://A.b"),
        ("a.b.c.d-e+f", None),
        ("a://", None),
        ("9://b", None),
    ],
)
def test_where_an_address_begins(text: str, address: str | None) -> None:
    assert cited_addresses(text) == ((address,) if address else ())


@given(st.text(), st.lists(st.sampled_from([A, B]), unique=True))
def test_the_text_stays_and_a_second_time_lists_nothing_more(
    text: str, sources: list[SourceRead]
) -> None:
    report = with_sources(text, sources)
    assert report.startswith(text.rstrip())
    assert with_sources(report, sources).count("## Sources") == report.count("## Sources")
