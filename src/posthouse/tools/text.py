"""Readable text out of fetched bytes; every scan is linear, because pages may be hostile."""

import codecs
import html
import re
from dataclasses import dataclass

import structlog

# Measured: trafilatura takes 20-60 us per tag, so this bounds it at about two seconds.
MAX_TAGS = 30_000

_CHARSET = re.compile(rb"charset\s{0,8}=\s{0,8}[\"']?([A-Za-z0-9_.:-]{1,40})")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]{0,20})")
_HEADING = re.compile(r"#{1,6}[ \t]+(\S.*)")
_SILENT = ("head", "script", "style", "template", "noscript", "svg", "textarea", "iframe", "nav")
_CLOSING = {name: re.compile(rf"</{name}\b", re.IGNORECASE) for name in _SILENT}
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
    except (LookupError, ValueError):
        return None


def readable_html(markup: str) -> Readable:
    """The main text of an HTML page and its title; text "" when there is none."""
    title = _element(markup, "title") or _element(markup, "h1")
    return Readable(title, _article(markup) or plain_text(markup))


def readable_text(text: str) -> Readable:
    """Plain text or Markdown as it is; the title is its first heading."""
    for line in text[:20_000].splitlines():
        heading = _HEADING.match(line.strip())
        if heading:
            return Readable(heading[1].rstrip("# \t"), text)
    return Readable("", text)


def plain_text(markup: str) -> str:
    """The text between the tags, a paragraph per block element; in one pass."""
    blocks: list[list[str]] = [[]]
    at = 0
    while (start := markup.find("<", at)) >= 0:
        blocks[-1].append(markup[at:start])
        tag = _TAG.match(markup, start)
        if tag is None:
            at = _after_oddity(markup, start)
            if at == start + 1:
                blocks[-1].append("<")
        else:
            at = _after_tag(markup, tag)
            if tag[2].lower() not in _INLINE:
                blocks.append([])
        if at == 0:
            break
    else:
        blocks[-1].append(markup[at:])
    lines = (" ".join(_unescaped("".join(block)).split()) for block in blocks)
    return "\n\n".join(line for line in lines if line)


def _after_oddity(markup: str, start: int) -> int:
    """Where a comment or declaration ends; after a bare `<`; 0 when nothing more follows."""
    if markup.startswith("<!--", start):
        end = markup.find("-->", start + 4)
        return end + 3 if end >= 0 else 0
    if markup.startswith(("<!", "<?", "</"), start):
        return markup.find(">", start) + 1
    return start + 1


def _after_tag(markup: str, tag: re.Match[str]) -> int:
    end = markup.find(">", tag.end()) + 1
    closing = _CLOSING.get(tag[2].lower()) if end and not tag[1] else None
    if closing is None:
        return end
    close = closing.search(markup, end)
    return close.start() if close else 0


def _element(markup: str, name: str) -> str:
    """The text of the first such element, or ""."""
    opening = re.search(rf"<{name}\b", markup, re.IGNORECASE)
    start = markup.find(">", opening.end()) + 1 if opening else 0
    if start == 0:
        return ""
    closing = re.compile(rf"</{name}\b", re.IGNORECASE).search(markup, start)
    inside = markup[start : closing.start()] if closing else ""
    return " ".join(plain_text(inside[:2000]).split())


def _article(markup: str) -> str | None:
    if markup.count("<") > MAX_TAGS:
        return None
    try:
        from trafilatura import extract
    except ImportError:  # the extra `web` is not installed
        return None
    try:
        return extract(markup, output_format="markdown", include_comments=False, fast=True)
    except Exception:
        # Whatever a page does to the parser, the plain scan still reads it.
        log.warning("page_extraction_broke", exc_info=True)
        return None


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a character reference of thousands of digits
        return text
