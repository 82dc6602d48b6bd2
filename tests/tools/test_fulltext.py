from collections.abc import Iterator
from contextlib import closing
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.tools.folder import Document
from posthouse.tools.fulltext import Index, match_query, passages

any_text = st.text(st.characters(codec=None, exclude_categories=()))
filler = "Nothing of interest stands here, only filling words.\n\n" * 40

DOCUMENTS = (
    Document("horses.md", "Horses", "They run.\n\n" + filler + "\n\nA courier changes horses."),
    Document("letters.md", "Letters", "The courier carries letters. Letters never wait."),
    Document("mention.md", "Roads", "A road. Long ago horses were seen here.\n\n" + filler),
    Document("empty.md", "Streaming", ""),
    Document("odd.md", "Größe", "Don't panic: the café, naïve_words and C++."),
)
PATHS = {document.path for document in DOCUMENTS}


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    with closing(Index(DOCUMENTS)) as index:
        yield index


def _found(index: Index, text: str, limit: int = 10) -> list[str]:
    return [match.path for match in index.search(text, limit)]


def test_a_word_of_the_title_counts_more(index: Index) -> None:
    assert _found(index, "horses") == ["horses.md", "mention.md"]


def test_each_document_comes_once_and_with_its_best_passage(index: Index) -> None:
    best = index.search("courier changing horses", 10)
    assert [match.path for match in best] == ["horses.md", "letters.md", "mention.md"]
    assert "courier changes horses" in best[0].passage
    assert "\n" not in best[0].passage


def test_parts_of_a_question_are_enough(index: Index) -> None:
    assert _found(index, "What do the zebras and the letters have in common?") == ["letters.md"]
    assert _found(index, "runs")[0] == "horses.md"
    assert _found(index, "GROSSE größe cafe")[0] == "odd.md"
    assert _found(index, "streaming") == ["empty.md"]


def test_the_limit_holds(index: Index) -> None:
    assert len(_found(index, "courier horses letters", 2)) == 2
    assert _found(index, "courier", 0) == []
    assert _found(index, "courier", -1) == []


@pytest.mark.parametrize(
    "query",
    ["", " ", '"', "'", "*", "courier*", "title:courier", "courier AND", "NOT", "NEAR(a b)", "(",
     "-", "^courier", "{title}: x", "a\0b", "\ud800", "courier OR OR", "+", "_", "__",
     "x" * 100_000, "word " * 50_000],
)  # fmt: skip
def test_no_query_is_a_syntax_error(query: str, index: Index) -> None:
    begun = perf_counter()
    matches = index.search(query, 10)
    assert {match.path for match in matches} <= PATHS
    assert perf_counter() - begun < 2


@given(any_text)
def test_any_query_is_answered(index: Index, query: str) -> None:
    found = _found(index, query, 3)
    assert len(found) == len(set(found)) <= 3
    assert set(found) <= PATHS


@given(any_text, any_text)
def test_a_query_is_only_quoted_words(left: str, right: str) -> None:
    query = match_query(f'{left} word " OR {right}')
    for term in query.split(" OR "):
        assert term[0] == term[-1] == '"'
        assert '"' not in term[1:-1]
    assert query.count(" OR ") < 32


def test_stop_words_count_only_when_there_is_nothing_else() -> None:
    assert match_query("What is the journal of a run?") == '"journal" OR "run"'
    assert match_query("who are we") == '"who" OR "are" OR "we"'
    assert match_query("run Run RUN") == '"run"'


def test_a_document_is_found_by_its_path(index: Index) -> None:
    assert index.document("letters.md") == DOCUMENTS[1]
    assert index.document("../letters.md") is None
    assert index.document("a\0b") is None


@given(st.text("ab \n", max_size=200) | st.text())
def test_passages_hold_every_word_of_the_text(text: str) -> None:
    assert " ".join(passages(text)).split() == text.split()


def test_passages_are_of_a_few_paragraphs() -> None:
    sizes = [len(passage) for passage in passages(filler + "long " * 5000 + "x" * 10_000)]
    assert max(sizes) <= 2000
    assert sum(sizes) / len(sizes) > 400
