"""Readable text out of fetched bytes; every scan is linear, because pages may be hostile."""

import codecs
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from posthouse.tools.markup import Piece, Tag, pieces, tidy

# Measured: trafilatura takes 20-90 us per tag, so this bounds it at about three seconds.
MAX_TAGS = 30_000
_LONGEST_TITLE = 2000

_CHARSET = re.compile(rb"charset\s{0,8}=\s{0,8}[\"']?([A-Za-z0-9_.:-]{1,40})")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEADING = re.compile(r"#{1,6}[ \t]+(\S.*)")
# Text that is no part of what a page says.
_ASIDE = frozenset({"nav", "title"})
_INLINE = frozenset(
    re.findall(
        r"\w+",
        "a abbr b bdi bdo cite code data dfn em font i img kbd mark q s samp small span strong sub"
        " sup time tt u var wbr",
    )
)
# Codecs of Python that are no encodings of pages; some of them take quadratic time.
_NO_PAGE_CODECS = frozenset(
    {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7", "undefined"}
)

log = structlog.get_logger()


@dataclass(frozen=True)
class Readable:
    """What a person would read of a document; `title` is "" when it has none."""

    title: str
    text: str


def decoded(body: bytes, declared: str | None = None) -> str:
    """The text by its byte order mark, the declared charset, or UTF-8; faults are replaced."""
    for mark, name in _MARKS:
        if body.startswith(mark):
            return body.decode(name, "replace")
    text = _decoded_as(body, declared) if declared else None
    return body.decode("utf-8", "replace") if text is None else text


def named_charset(page: bytes) -> str | None:
    """The charset that an HTML page names near its beginning."""
    named = _CHARSET.search(page[:2048])
    return named[1].decode("ascii") if named else None


def _decoded_as(body: bytes, charset: str) -> str | None:
    try:
        if codecs.lookup(charset).name.replace("_", "-") in _NO_PAGE_CODECS:
            return None
        return body.decode(charset, "replace").encode("utf-8", "replace").decode()
    except (LookupError, ValueError, RuntimeError):  # some codecs break at bytes of no language
        return None


def readable_html(markup: str) -> Readable:
    """The main text of an HTML page and its title; text "" when there is none."""
    found = list(pieces(markup.replace("\0", "")))
    title = _first(found, "title") or _first(found, "h1")
    return Readable(title, _article(found) or _plain_text(found))


def readable_text(text: str) -> Readable:
    """Plain text or Markdown as it is; the title is its first heading."""
    for line in text[:20_000].splitlines():
        heading = _HEADING.match(line.strip())
        if heading:
            return Readable(heading[1].rstrip("# \t"), text)
    return Readable("", text)


def plain_text(markup: str) -> str:
    """The text between the tags, a paragraph per block element; in one pass."""
    return _plain_text(list(pieces(markup)))


def _plain_text(found: list[Piece]) -> str:
    blocks: list[list[str]] = [[]]
    for piece in _said(found):
        if isinstance(piece, str):
            blocks[-1].append(piece)
        elif piece.name not in _INLINE:
            blocks.append([])
    lines = (" ".join(_unescaped("".join(block)).split()) for block in blocks)
    return "\n\n".join(line for line in lines if line)


def _said(found: list[Piece]) -> Iterator[Piece]:
    """The pieces that are not inside an element of `_ASIDE`; one that is never closed hides none."""
    last = {it.name: n for n, it in enumerate(found) if isinstance(it, Tag) and it.closes}
    aside = ""
    for number, piece in enumerate(found):
        match piece:
            case Tag(name, closes=True) if name == aside:
                aside = ""
            case Tag(name, closes=False) if not aside and name in _ASIDE:
                aside = name if number < last.get(name, 0) else ""
        if not aside:
            yield piece


def _first(found: list[Piece], name: str) -> str:
    """The text of the first such element, or ""."""
    inside: list[str] | None = None
    for piece in found:
        if isinstance(piece, str):
            if inside is not None:
                inside.append(piece)
        elif piece.name == name:
            if piece.closes and inside is not None:
                return " ".join(_unescaped("".join(inside)[:_LONGEST_TITLE]).split())
            inside = inside or []
    return ""


def _article(found: list[Piece]) -> str | None:
    if sum(isinstance(piece, Tag) for piece in found) > MAX_TAGS:
        return None
    try:
        from trafilatura import extract
    except ImportError:  # the extra `web` is not installed
        return None
    try:
        return extract(tidy(found), output_format="markdown", include_comments=False, fast=True)
    except Exception:
        # Whatever a page does to the parser, the plain scan still reads it.
        log.warning("page_extraction_broke", exc_info=True)
        return None


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a character reference of thousands of digits
        return text
