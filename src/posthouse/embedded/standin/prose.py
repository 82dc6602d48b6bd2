"""Sentences out of Markdown or plain text: code, tables, headings and link syntax stay behind."""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

from posthouse.embedded.standin.words import words


@dataclass(frozen=True)
class Sentence:
    """One whole sentence and the heading that it stands under."""

    text: str
    heading: str


_FRONT_MATTER = re.compile(r"\A\s*---\r?\n.*?\n---\r?\n", re.DOTALL)
_FENCE = re.compile(r"^[ \t>]*(?:[-*+][ \t]+)?(`{3,}|~{3,})")
_NOT_PROSE = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|pre|table|nav)\b.*?(?:</\1\s*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(
    r"</?(?:a|abbr|b|blockquote|br|center|code|dd|details|div|dl|dt|em|figure|h[1-6]|hr|i|img|kbd|li|"
    r"ol|p|picture|section|small|source|span|strong|sub|summary|sup|td|th|tr|u|ul)\b[^<>]*>",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
_UNDERLINE = re.compile(r"^(?:=+|-+)$")
_ITEM = re.compile(r"^(?:[-*+\u2022]|\d{1,3}[.)])\s+(?:\[[ xX]\]\s+)?")
_SKIPPED = re.compile(
    r"^(?:\||\[[^\]]+\]:|!!!|\?\?\?|:::|\.\. |[-*_=](?:\s*[-*_=]){2,}$)|\s\|\s|\|$"
)

_IMAGE = re.compile(r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])")
_FOOTNOTE = re.compile(r"\[\^[^\]]*\]|\[\d{1,3}\]")
_LINK = re.compile(r"\[([^\[\]]+)\](?:\((?:[^()]|\([^()]*\))*\)|\[[^\]]*\])")
_ADDRESS = re.compile(r"<(?:https?://|mailto:)[^<>\s]*>")
_STRONG = re.compile(r"\*\*|(?<!\w)__|__(?!\w)")
_EMPHASIS = re.compile(r"(?<![\w*])([*_])(?=\S)([^*_]*?\S)\1(?![\w*])")
_CODE = re.compile(r"(`[^`]*`)")

_END = re.compile(r"[.!?][\"')\]\u201d\u2019]*\s+(?=[\"'(`\u201c]?[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|approx|incl|resp|no|fig|sec|dr|mr|mrs|ms|st)|(?<![\w.])[A-Z])\.\s*$",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"cookies?\b|copyright|all rights reserved|subscribe|newsletter|sign (?:in|up)\b|log in\b|"
    r"click here|read more|learn more|see also|table of contents|edit (?:this|on)|last (?:updated|"
    r"modified)|licen[cs]ed under|previous page|next page|skip to|this (?:page|section|chapter)|"
    r"in this (?:page|section|guide|article|document)|\b(?:above|below|following)\b|lorem ipsum",
    re.IGNORECASE,
)
_UNFIT = re.compile(r"\w://|[{}|\\<>=]+.*[{}|\\<>=]|[\[\]]|\S{60,}|#\s|\*\*|\u2026$|\.\.\.$")
_STARTS_WELL = re.compile(r"[\"'(\u201c]?(?:[A-Z0-9]|`[^`]+`\s)")
_SHORT_LINE = 48
_MIN_WORDS, _MAX_WORDS, _MIN_LETTERS = 6, 45, 0.7


def sentences(text: str) -> tuple[Sentence, ...]:
    """The sentences that read well on their own, in the order of the text, each once."""
    seen: dict[str, Sentence] = {}
    for heading, block in _blocks(_without_markup(text)):
        for sentence in _split(_inline(block)):
            if reads_well(sentence):
                seen.setdefault(sentence, Sentence(sentence, heading))
    return tuple(seen.values())


def split(line: str) -> list[str]:
    """The sentences of one line, whether they read well or not."""
    return _split(_inline(line))


def reads_well(sentence: str) -> bool:
    """Whether the text is one whole plain sentence of a moderate length."""
    count = len(words(sentence))
    letters = sum(c.isalpha() or c.isspace() for c in sentence)
    return (
        _MIN_WORDS <= count <= _MAX_WORDS
        and sentence.rstrip("\"')\u201d\u2019")[-1:] in {".", "!"}
        and _STARTS_WELL.match(sentence) is not None
        and letters >= _MIN_LETTERS * len(sentence)
        and sentence.count("`") % 2 == 0
        and sentence.count('"') % 2 == 0
        and sentence.count("(") == sentence.count(")")
        and _UNFIT.search(sentence) is None
        and _BOILERPLATE.search(sentence) is None
    )


def plain(text: str) -> str:
    """A title or heading as one line without Markdown, brackets or citation marks."""
    return re.sub(r"[\[\]]", "", _inline(_TAG.sub("", text))).strip(" #*_")


def _without_markup(text: str) -> str:
    text = _FRONT_MATTER.sub("", text.replace("\r\n", "\n"))
    return _TAG.sub("", _NOT_PROSE.sub("\n\n", "\n".join(_unfenced(text))))


def _unfenced(text: str) -> Iterator[str]:
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip("`~ \t"):
                fence = ""
        elif mark:
            fence = mark[1]
            yield ""
        else:
            yield line


def _blocks(text: str) -> list[tuple[str, str]]:
    """Each paragraph or list item as one line, with the heading above it."""
    paragraphs = _Paragraphs()
    for line in text.split("\n"):
        paragraphs.take(line)
    paragraphs.close()
    return paragraphs.found


class _Paragraphs:
    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self._heading = ""
        self._lines: list[str] = []

    def take(self, raw: str) -> None:
        line = raw.strip().lstrip(">").strip()
        item = _ITEM.match(line)
        if title := _HEADING.match(line):
            self._title(title[1])
        elif len(self._lines) == 1 and _UNDERLINE.match(line):
            self._title(self._lines.pop())
        elif not line or _SKIPPED.search(line) or self._is_code(raw, item is not None):
            self.close()
        elif item:
            self.close()
            self._lines.append(line[item.end() :])
        else:
            if self._stands_alone(line):
                self.close()
            self._lines.append(line)

    def close(self) -> None:
        if self._lines:
            self.found.append((self._heading, " ".join(self._lines)))
            self._lines = []

    def _title(self, text: str) -> None:
        self.close()
        self._heading = plain(text)

    def _is_code(self, raw: str, item: bool) -> bool:
        return not self._lines and not item and raw.startswith(("    ", "\t"))

    def _stands_alone(self, line: str) -> bool:
        """Whether the line before was so short that it ended its paragraph."""
        return bool(self._lines) and len(self._lines[-1]) < _SHORT_LINE and line[:1].isupper()


def _inline(text: str) -> str:
    text = _IMAGE.sub("", text)
    text = _LINK.sub(r"\1", _FOOTNOTE.sub("", text))
    text = _ADDRESS.sub("", text)
    parts = _CODE.split(text)
    parts[::2] = [_without_emphasis(part) for part in parts[::2]]
    return re.sub(r"\s+([,.;:!?])(?=\s|$)", r"\1", " ".join("".join(parts).split()))


def _without_emphasis(text: str) -> str:
    return html.unescape(_EMPHASIS.sub(r"\2", _STRONG.sub("", text)))


def _split(text: str) -> list[str]:
    found, start = list[str](), 0
    for end in _END.finditer(text):
        before = text[start : end.end()]
        if before.count("`") % 2 == 0 and not _ABBREVIATION.search(before):
            found.append(before.strip())
            start = end.end()
    return [*found, text[start:].strip()]
