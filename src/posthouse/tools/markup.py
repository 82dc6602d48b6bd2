"""Takes HTML apart in one pass, as a browser does; whatever the page, the time grows with its length only."""

import re
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

# What an extractor looks at. A tag keeps no more, because parsers compare each attribute with all.
_KEPT = frozenset(
    re.findall(
        r"[\w-]+",
        "alt aria-hidden class colspan content href id itemprop lang name property rel role rowspan"
        " src style title type",
    )
)
_LONGEST_VALUE = 2000

# Elements of which nothing is read, up to their end.
_SILENT = frozenset(
    re.findall(
        r"\w+",
        "iframe math noembed noframes noscript plaintext script style svg template textarea xmp",
    )
)
_CLOSING = {name: re.compile(rf"</{name}\b", re.IGNORECASE) for name in _SILENT}

_NAME = re.compile(r"</?([A-Za-z][^\s/>]*+)")
_PLAIN_NAME = re.compile(r"[a-z][a-z0-9]{0,20}")
_ATTRIBUTE = re.compile(r"[\s/]*+(=?[^\s/>=]*+)\s*+(?:=\s*+([^\s>\"'][^\s>]*+|[\"'])?)?")


class Tag(NamedTuple):
    """A tag with a lower-case name; `attributes` is the start of each, without those nobody reads."""

    name: str
    closes: bool
    attributes: dict[str, str]


Piece: TypeAlias = Tag | str


def pieces(markup: str) -> Iterator[Piece]:
    """The tags, and the text between them; no comments, scripts and the like."""
    at = 0
    while (start := markup.find("<", at)) >= 0:
        if start > at:
            yield markup[at:start]
        opening = _NAME.match(markup, start)
        if opening is None:
            at = _after_oddity(markup, start)
            if at == start + 1:
                yield "<"
        else:
            tag, at = _tag(markup, opening)
            if at and not tag.closes and tag.name in _SILENT:
                at = _after_silence(markup, tag.name, at)
            if at:
                yield tag
        if at == 0:
            return
    if at < len(markup):
        yield markup[at:]


def tidy(found: list[Piece]) -> str:
    """HTML of these pieces that every parser reads alike: plain names, few and quoted attributes."""
    return "".join(_tidied(piece) for piece in found)


def _tidied(piece: Piece) -> str:
    if isinstance(piece, str):
        return piece.replace("<", "&lt;")
    if _PLAIN_NAME.fullmatch(piece.name) is None:
        return ""
    if piece.closes:
        return f"</{piece.name}>"
    attributes = "".join(f' {name}="{_quoted(it)}"' for name, it in piece.attributes.items())
    return f"<{piece.name}{attributes}>"


def _quoted(value: str) -> str:
    return value.replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _tag(markup: str, opening: re.Match[str]) -> tuple[Tag, int]:
    """The tag and where it ends; 0 when the page ends before."""
    attributes: dict[str, str] = {}
    tag = Tag(opening[1].lower(), opening[0].startswith("</"), attributes)
    at = opening.end()
    while at < len(markup):
        if markup[at] == ">":
            return tag, at + 1
        found = _ATTRIBUTE.match(markup, at)
        assert found is not None  # it matches the empty text too
        name, value, at = found[1].lower(), found[2] or "", found.end()
        if value in ("'", '"'):
            close = markup.find(value, at)
            if close < 0:
                break
            value, at = markup[at : min(close, at + _LONGEST_VALUE)], close + 1
        if name in _KEPT:
            attributes.setdefault(name, value[:_LONGEST_VALUE])
    return tag, 0


def _after_oddity(markup: str, start: int) -> int:
    """Where a comment or declaration ends; after a bare `<`; 0 when nothing more follows."""
    if markup.startswith("<!--", start):
        end = markup.find("-->", start + 2)
        return end + 3 if end >= 0 else 0
    if markup.startswith(("<!", "<?", "</"), start):
        return markup.find(">", start) + 1
    return start + 1


def _after_silence(markup: str, name: str, start: int) -> int:
    closing = _CLOSING[name].search(markup, start)
    return closing.start() if closing else 0
