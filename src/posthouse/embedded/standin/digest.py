"""A text out of the results that stand in a task: their sentences, each with the address that it cited."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from posthouse.embedded.standin.evidence import Evidence, ReadPage, Task
from posthouse.embedded.standin.prose import plain, reads_well, split
from posthouse.embedded.standin.writer import FROM_RESULTS, Reader, headline, report
from posthouse.llm.outside import blocks_in, without_blocks

_RESULT = re.compile(r"Result of `([^`]{1,64})`")
_MISSING = re.compile(r"^What is missing:\n((?:- .*\n?)+)", re.MULTILINE)
_SOURCES = re.compile(r"^#{1,6}[ \t]+(?:sources|references)\b.*$", re.IGNORECASE | re.MULTILINE)
_LISTED = re.compile(r"^\s*\[?(\d{1,3})[\].)]+\s+(.*)$", re.MULTILINE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s<>()\[\]]+", re.IGNORECASE)
_LINKED = re.compile(r"\[\[(\d{1,3})\]\]\(([^()\s]+)\)")
_CITED = re.compile(r"\[(\d{1,3})\](?!\()")
_AFTER_END = re.compile(r"([.!?])((?:\s*\[\d{1,3}\])+)")
_ITEM = re.compile(r"^\s*(?:[-*+]|\d{1,3}[.)])\s+")
_WITHOUT_SOURCE = 4


@dataclass(frozen=True)
class Result:
    """One result in a task: the subtask's id, the sentences that cite an address, those that cite none."""

    id: str
    cited: tuple[tuple[str, str], ...]
    uncited: tuple[str, ...]
    titles: dict[str, str]


def results_in(text: str) -> tuple[Result, ...]:
    """The results that the task brings."""
    found = ((_RESULT.match(label), inside) for label, inside in blocks_in(text))
    return tuple(_read(label[1], inside) for label, inside in found if label)


def digest(task: Task, read: Reader) -> str:
    """The text in Markdown: what the results cite with their sources, what they say without, and what is missing."""
    results = results_in(task.text)
    pages, topic = _pages(results), task.topic
    if pages:
        text = report(topic, Evidence(pages=pages), read, disclaimer=FROM_RESULTS)
    else:
        text = f"# {headline(topic)}\n\n{FROM_RESULTS}\n\nThe results cite no source.\n"
    body, heading, sources = text.partition("\n## Sources\n")
    more = [part for part in (_uncited(results), _missing(task.text)) if part]
    return "\n\n".join([body.rstrip(), *more]) + ("\n" + heading + sources if heading else "\n")


def asks_for_digest(task: Task) -> bool:
    """Whether the task brings results, or says that they are missing."""
    return bool(results_in(task.text)) or _MISSING.search(without_blocks(task.text)) is not None


def _pages(results: tuple[Result, ...]) -> tuple[ReadPage, ...]:
    """What the results cite as if it had been read: a page for each address."""
    said: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    for result in results:
        titles |= result.titles
        for sentence, address in result.cited:
            said.setdefault(address, []).append(f"- {sentence}")
    return tuple(
        ReadPage(url=address, title=titles.get(address, ""), text="\n".join(lines))
        for address, lines in said.items()
    )


def _uncited(results: tuple[Result, ...]) -> str:
    parts = [
        f"As `{result.id}` says:\n\n"
        + "\n".join(f"- {sentence}" for sentence in result.uncited[:_WITHOUT_SOURCE])
        for result in results
        if result.uncited and not result.cited
    ]
    return "\n\n".join(["## Without a source", *parts]) if parts else ""


def _missing(text: str) -> str:
    found = _MISSING.search(without_blocks(text))
    return f"## What is missing\n\n{found[1].strip()}" if found else ""


def _read(result_id: str, text: str) -> Result:
    heading = _SOURCES.search(text)
    body, listed = (text[: heading.start()], text[heading.end() :]) if heading else (text, "")
    addresses, titles = _sources(listed)
    linked = {number: address for number, address in _LINKED.findall(body) if "://" in address}
    addresses |= linked
    cited, uncited = list[tuple[str, str]](), list[str]()
    for sentence, numbers in _sentences(_LINKED.sub(r"[\1]", body)):
        known = [addresses[number] for number in numbers if number in addresses]
        if known:
            cited.append((sentence, known[0]))
        elif "stand-in model" not in sentence:  # what it says of itself is no finding
            uncited.append(sentence)
    return Result(result_id, tuple(cited), tuple(uncited), titles)


def _sources(listed: str) -> tuple[dict[str, str], dict[str, str]]:
    """The address of each number, and the title of each address."""
    addresses, titles = dict[str, str](), dict[str, str]()
    for number, line in _LISTED.findall(listed):
        if found := _ADDRESS.search(line):
            addresses.setdefault(number, found[0].rstrip(".,;"))
            title = plain(line.replace(found[0], "").strip(" -<>()[]"))
            titles.setdefault(addresses[number], title.strip(" -<>()"))
    return addresses, titles


def _sentences(body: str) -> Iterator[tuple[str, list[str]]]:
    """Each sentence that reads well, without its citations, and their numbers."""
    for line in body.splitlines():
        moved = _AFTER_END.sub(r"\2\1", _ITEM.sub("", line))
        hidden = _CITED.sub("⟦\\1⟧", moved)
        for sentence in split(hidden) if not line.lstrip().startswith("#") else ():
            numbers = re.findall("⟦(\\d+)⟧", sentence)
            said = re.sub("\\s*⟦\\d+⟧", "", sentence)
            if reads_well(said):
                yield said, numbers
