"""The documents of a folder: which there are, and what each says."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import structlog

from posthouse.tools.text import Readable, decoded, named_charset, readable_html, readable_text

SUFFIXES = frozenset({".md", ".txt", ".html"})
MAX_FILE_BYTES = 2_000_000

log = structlog.get_logger()


@dataclass(frozen=True)
class Found:
    """A file of the folder as it was seen; two equal lists of them mean that nothing changed."""

    path: str
    size: int
    modified_ns: int


@dataclass(frozen=True)
class Document:
    """One document of the folder; `path` is relative to it, with `/`."""

    path: str
    title: str
    text: str


def scan(root: Path) -> tuple[Found, ...]:
    """The documents under a resolved folder, by path; no hidden, outside or too large ones."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            seen = _seen(root, Path(folder, name))
            if seen is not None:
                found.append(seen)
    return tuple(sorted(found, key=lambda entry: entry.path))


def load(root: Path, found: Found) -> Document | None:
    """The document's title and text; None when it is gone or cannot be read."""
    file = root / found.path
    try:
        with file.open("rb") as opened:
            body = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        log.warning("corpus_file_unreadable", path=found.path, error=str(error))
        return None
    if len(body) > MAX_FILE_BYTES:
        return None
    reading = _reading(file, body)
    return Document(found.path, reading.title or file.stem, reading.text)


def _reading(file: Path, body: bytes) -> Readable:
    if file.suffix.lower() == ".html":
        return readable_html(decoded(body, named_charset(body)))
    return readable_text(decoded(body))


def _seen(root: Path, file: Path) -> Found | None:
    if file.suffix.lower() not in SUFFIXES or not _inside(root, file):
        return None
    try:
        path = file.relative_to(root).as_posix()
        path.encode()
        status = file.stat()
    except (OSError, UnicodeEncodeError):
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        return None
    return Found(path, status.st_size, status.st_mtime_ns)


def _inside(root: Path, file: Path) -> bool:
    """Whether the file, and what it links to, is a visible file of the folder."""
    if file.name.startswith("."):
        return False
    if not file.is_symlink():
        return True
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError):
        return False
    if not target.is_relative_to(root):
        return False
    return not any(part.startswith(".") for part in target.relative_to(root).parts)
