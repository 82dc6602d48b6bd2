"""The report: sentences picked from what was read, each with its citation."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from posthouse.embedded.standin.evidence import Evidence, Hit, ReadPage
from posthouse.embedded.standin.prose import Sentence, plain
from posthouse.embedded.standin.words import stems

Reader = Callable[[str], tuple[Sentence, ...]]

DISCLAIMER = (
    "This was written by posthouse's stand-in model, which is not a language model: "
    "it picked sentences from what its tools returned."
)
FROM_RESULTS = (
    "This was written by posthouse's stand-in model, which is not a language model: "
    "it picked sentences from the results that it was given."
)
_PER_SOURCE = 4
_IN_SHORT = 3
_SAME = 0.6
_LEANING = (
    "this", "that", "these", "those", "it", "its", "they", "their", "he", "she", "however",
    "but", "and", "so", "then", "thus", "also", "otherwise", "instead", "therefore", "such",
    "both", "here", "there", "for example", "for instance", "in addition", "as a result",
    "the latter", "the former", "yet", "or",
)  # fmt: skip


@dataclass(frozen=True)
class _Candidate:
    text: str
    stems: frozenset[str]
    score: float
    page: int
    order: int


@dataclass(frozen=True)
class _Picked:
    page: int
    sentences: tuple[_Candidate, ...]


def report(topic: str, evidence: Evidence, read: Reader, *, disclaimer: str = DISCLAIMER) -> str:
    """The report in Markdown; `read` gives the sentences of a page's text.

    Every `[n]` in it stands in the list of sources, and every source there is cited.
    """
    picked = _picked(topic, evidence.pages, read)
    opening = f"# {headline(topic)}\n\n{disclaimer}"
    if not picked:
        return "\n\n".join([opening, *_without_sources(evidence)]) + "\n"
    number = {source.page: index for index, source in enumerate(picked, start=1)}
    titles = {p.page: _title(evidence.pages[p.page], evidence.hits) for p in picked}
    leads = [source.sentences[0] for source in picked[:_IN_SHORT]]
    parts = [opening, "## In short", _bullets(leads, number)]
    rest = [(s, [c for c in s.sentences if c not in leads]) for s in picked]
    if any(left for _, left in rest):
        parts.append("## What the sources say")
    for source, left in rest:
        if left:
            parts += [f"### {titles[source.page]}", _bullets(left, number)]
    sources = (
        f"[{number[p.page]}] {titles[p.page]} ({evidence.pages[p.page].url})" for p in picked
    )
    return "\n\n".join([*parts, "## Sources", *sources]) + "\n"


def _bullets(sentences: Iterable[_Candidate], number: dict[int, int]) -> str:
    return "\n".join(f"- {sentence.text} [{number[sentence.page]}]" for sentence in sentences)


def _without_sources(evidence: Evidence) -> list[str]:
    """What there is to say when nothing can be cited."""
    said = (
        "Documents were read, but held no sentence to pick."
        if evidence.pages
        else "Nothing was read."
    )
    if evidence.failures:
        said += f" Failed tool calls: {evidence.failures}."
    found = {hit.url: plain(hit.title) or hit.url for hits in evidence.hits for hit in hits}
    if evidence.search_failed:
        said += " The search failed."
    elif evidence.searched and not found:
        said += " The search found nothing."
    said += " So this report cites no source."
    listed = "\n".join(f"- {title}" for title in list(found.values())[:8])
    return [said, f"Found, but not read:\n\n{listed}"] if listed and not evidence.pages else [said]


def _picked(topic: str, pages: tuple[ReadPage, ...], read: Reader) -> list[_Picked]:
    """The best sentences of each page that has any, the page with the best one first."""
    candidates = _candidates(topic, pages, read)
    telling = [c for c in candidates if c.score > 0]
    # Fewer than two sources on the topic: what else was read is better shown than hidden.
    chosen = telling if len({c.page for c in telling}) > 1 else candidates
    taken: dict[int, list[_Candidate]] = {}
    for candidate in sorted(chosen, key=lambda c: (-c.score, c.page, c.order)):
        mine = taken.get(candidate.page, [])
        others = (other for some in taken.values() for other in some)
        if len(mine) < _PER_SOURCE and not any(_alike(candidate, other) for other in others):
            taken.setdefault(candidate.page, []).append(candidate)
    return [_Picked(page, tuple(sentences)) for page, sentences in taken.items()]


def _candidates(topic: str, pages: tuple[ReadPage, ...], read: Reader) -> list[_Candidate]:
    wanted = stems(topic)
    texts = [
        (page, order, s) for page, p in enumerate(pages) for order, s in enumerate(read(p.text))
    ]
    known = [stems(s.text) for _, _, s in texts]
    frequency = Counter(stem for found in known for stem in found & wanted)
    weight = {stem: math.log(1 + len(texts) / count) for stem, count in frequency.items()}
    return [
        _Candidate(s.text, found, _score(s, found, weight), page, order)
        for (page, order, s), found in zip(texts, known, strict=True)
    ]


def _score(sentence: Sentence, found: frozenset[str], weight: dict[str, float]) -> float:
    """Overlap with the topic; rare words and the heading help, leaning on the context hurts."""
    score = sum(weight.get(stem, 0.0) for stem in sorted(found))
    if not score:
        return 0.0
    score += 0.25 * sum(weight.get(stem, 0.0) for stem in sorted(stems(sentence.heading)))
    leans = sentence.text.lower().startswith(tuple(f"{word} " for word in _LEANING))
    return score * (0.5 if leans else 1.0) / (1 + len(found) / 40)


def _alike(one: _Candidate, other: _Candidate) -> bool:
    either = len(one.stems | other.stems)
    return not either or len(one.stems & other.stems) / either > _SAME


def headline(topic: str) -> str:
    """The topic as a title."""
    line = plain(" ".join(topic.split()))
    if len(line) > 120:
        line = line[:120].rsplit(" ", 1)[0] + " ..."
    return line[:1].upper() + line[1:] or "Report"


def _title(page: ReadPage, hits: tuple[tuple[Hit, ...], ...]) -> str:
    found = (hit.title for some in hits for hit in some if hit.url == page.url)
    names = (plain(name) for name in (page.title, *found, page.url))
    return next((name for name in names if name), page.url)
