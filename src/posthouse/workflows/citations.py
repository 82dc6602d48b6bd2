"""A report's citations against what was really read."""

import re
from collections.abc import Sequence

from posthouse.journal.model import SourceRead

_SOURCE_LIST = re.compile(
    r"^ {0,3}(?:#{1,6}[ \t]+|\*\*)(?:\d+[.)][ \t]*)?(?:sources|references|bibliography)\b",
    re.IGNORECASE | re.MULTILINE,
)
# An address may hold one level of parentheses, as those of encyclopedias do. No character is looked at twice:
# a report may be a megabyte of what looks like the beginning of one.
_ADDRESS = re.compile(
    r"(?<![a-z0-9+.-])[0-9+.-]*+([a-z][a-z0-9+.-]*+://(?:[^\s<>\"'`()\[\]]++|\([^\s<>()]*+\))++)",
    re.IGNORECASE,
)
_TRAILING = ".,;:!?*_"
_MOST_UNREAD = 100
_MOST_CHARACTERS = 500


def with_sources(report: str, sources: Sequence[SourceRead]) -> str:
    """The report with a list of what was read, unless it has one, and a note on what was not.

    The note names each address that the report cites and nobody read, so that no reader trusts it.
    """
    parts = [report.rstrip()]
    if _SOURCE_LIST.search(report) is None:
        parts.append(_source_list(sources))
    if unread := cited_unread(report, sources):
        lines = "\n".join(_listed(unread))
        parts.append(f"## Cited but not read\n\nNothing here vouches for these:\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def cited_addresses(report: str) -> tuple[str, ...]:
    """Every address that the report links to or names, in order, each once."""
    if "://" not in report:  # looked for so much faster
        return ()
    found = (address.rstrip(_TRAILING) for address in _ADDRESS.findall(report))
    return tuple(dict.fromkeys(found))


def cited_unread(report: str, sources: Sequence[SourceRead]) -> tuple[str, ...]:
    """The cited addresses that were not read; a part of a document that was read counts as read."""
    read = {_document(source.address) for source in sources}
    return tuple(one for one in cited_addresses(report) if _document(one) not in read)


def _listed(unread: Sequence[str]) -> list[str]:
    """One line an address, bounded: the note must not make a report too large to be kept."""
    lines = [f"- {_head(address)}" for address in unread[:_MOST_UNREAD]]
    more = len(unread) - len(lines)
    return [*lines, f"- and {more} more"] if more else lines


def _head(address: str) -> str:
    short = len(address) <= _MOST_CHARACTERS
    return address if short else f"{address[:_MOST_CHARACTERS]}…"


def _source_list(sources: Sequence[SourceRead]) -> str:
    if not sources:
        return "## Sources\n\nNone: no document was read for this report."
    lines = [
        f"{number}. {_one_line(source.title)} - <{source.address}>"
        for number, source in enumerate(sources, start=1)
    ]
    return "## Sources\n\n" + "\n".join(lines)


def _one_line(title: str) -> str:
    return " ".join(title.split()) or "Untitled"


def _document(address: str) -> str:
    return address.partition("#")[0].rstrip("/").lower()
