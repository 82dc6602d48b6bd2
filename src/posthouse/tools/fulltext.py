"""Ranked full-text search over documents, in memory."""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from posthouse.tools.folder import Document

PASSAGE_CHARACTERS = 900
_LONGEST = 2 * PASSAGE_CHARACTERS
_MAX_TERMS = 32
_MAX_TERM = 64
_WORD = re.compile(r"\w+")
_STOP_WORDS = frozenset(
    _WORD.findall(
        "a about an and are as at be by can do does for from had has have how i if in into is"
        " it its me my of on or our so than that the their them then there these they this to"
        " us was we were what when where which who why will with you your"
    )
)
_SCHEMA = """
CREATE TABLE documents (id INTEGER PRIMARY KEY, path TEXT UNIQUE, title TEXT, text TEXT);
CREATE VIRTUAL TABLE passages
    USING fts5(title, body, document UNINDEXED, tokenize='porter unicode61');
INSERT INTO passages(passages, rank) VALUES ('rank', 'bm25(4.0, 1.0)');
"""
_SEARCH = """
SELECT document, snippet(passages, 1, '', '', '…', 64)
FROM passages WHERE passages MATCH ? ORDER BY rank
"""


@dataclass(frozen=True)
class Match:
    """A document that a query found, and the passage that fits best."""

    path: str
    title: str
    passage: str


class Index:
    """The documents as they were when it was built. For one thread at a time; close it."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._store = sqlite3.connect(":memory:", check_same_thread=False)
        self._store.executescript(_SCHEMA)
        with self._store:
            for number, document in enumerate(documents):
                self._add(number, document)

    def _add(self, number: int, document: Document) -> None:
        row = (number, document.path, document.title, document.text)
        self._store.execute("INSERT INTO documents VALUES (?, ?, ?, ?)", row)
        self._store.executemany(
            "INSERT INTO passages (title, body, document) VALUES (?, ?, ?)",
            ((document.title, passage, number) for passage in passages(document.text)),
        )

    def search(self, text: str, limit: int) -> tuple[Match, ...]:
        """At most `limit` documents that hold any word of the text, best first."""
        query = match_query(text)
        best: dict[int, str] = {}
        if not query or limit < 1:
            return ()
        for number, passage in self._store.execute(_SEARCH, (query,)):
            best.setdefault(number, passage)
            if len(best) == limit:
                break
        return tuple(self._match(number, passage) for number, passage in best.items())

    def _match(self, number: int, passage: str) -> Match:
        statement = "SELECT path, title FROM documents WHERE id = ?"
        path, title = self._store.execute(statement, (number,)).fetchone()
        return Match(path, title, " ".join(passage.split()))

    def document(self, path: str) -> Document | None:
        """The document at the path, or None."""
        statement = "SELECT path, title, text FROM documents WHERE path = ?"
        row = self._store.execute(statement, (path,)).fetchone()
        return Document(*row) if row else None

    def close(self) -> None:
        """Gives the memory back."""
        self._store.close()


def match_query(text: str) -> str:
    """An FTS5 query for any of the text's words, valid for every text; "" when it has none."""
    words = [word[:_MAX_TERM] for word in _WORD.findall(text.lower())]
    telling = [word for word in words if word not in _STOP_WORDS] or words
    return " OR ".join(f'"{word}"' for word in list(dict.fromkeys(telling))[:_MAX_TERMS])


def passages(text: str) -> Iterator[str]:
    """The text in passages of a few paragraphs; at least one, so that a mere title is found too."""
    gathered: list[str] = []
    size = 0
    for paragraph in _paragraphs(text):
        if gathered and size + len(paragraph) > PASSAGE_CHARACTERS:
            yield "\n\n".join(gathered)
            gathered, size = [], 0
        gathered.append(paragraph)
        size += len(paragraph)
    yield "\n\n".join(gathered)


def _paragraphs(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            yield from _pieces("\n".join(lines))
            lines = []


def _pieces(paragraph: str) -> Iterator[str]:
    at = 0
    while len(paragraph) - at > _LONGEST:
        space = paragraph.rfind(" ", at + PASSAGE_CHARACTERS, at + _LONGEST)
        end = space if space > 0 else at + _LONGEST
        yield paragraph[at:end]
        at = end
    yield paragraph[at:]
