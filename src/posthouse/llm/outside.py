"""Text from outside in what a model reads: marked, so that it can be told from what the model is asked to do."""

import hashlib
import re
from collections.abc import Iterator

_MARKED = re.compile(r"<<data ([0-9a-f]{8})>>\n(.*)\n<<end \1>>", re.DOTALL)
_MARK = re.compile(r"<<data [0-9a-f]{8}>>\n")
_BLOCK = re.compile(
    r"^(?P<label>[^\n]*)\n<<data (?P<mark>[0-9a-f]{8})>>\n(?P<text>.*?)\n<<end (?P=mark)>>$",
    re.DOTALL | re.MULTILINE,
)


def mark_of(text: str) -> str:
    """The mark for a text: the same for the same text, so that the same conversation is the same request."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]


def marked(text: str) -> str:
    """The text between its marks; its mark is starred out inside, so nothing in it can end it."""
    mark = mark_of(text)
    inside = text.replace(mark, "*" * len(mark))
    return f"<<data {mark}>>\n{inside}\n<<end {mark}>>"


def unmarked(text: str) -> str:
    """The text without the marks around it; any other text as it is."""
    found = _MARKED.fullmatch(text)
    return found[2] if found else text


def has_marks(text: str) -> bool:
    """Whether some of the text is marked as coming from outside."""
    return _MARK.search(text) is not None


def blocks_in(text: str) -> Iterator[tuple[str, str]]:
    """Each marked text inside a longer one, with the line that stands above it."""
    return ((found["label"], found["text"]) for found in _BLOCK.finditer(text))


def without_blocks(text: str) -> str:
    """What of a text is not marked as coming from outside, and neither labels it."""
    return _BLOCK.sub("", text)
