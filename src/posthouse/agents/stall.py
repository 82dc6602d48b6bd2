"""Whether an agent goes in circles: a pure look at its past turns, and the ladder that leads out.

A turn is fresh when one of its calls did not fail and brought a result, or a source, that was not there
before. Only fresh turns lead down the ladder, and three turns in a row without one always lead up.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import orjson

from posthouse.llm.messages import ToolCall

REPEATED = 3
STREAK = 3
STALE_TURNS = 6
# What a model gets at most after its last fresh turn: three turns until it is told so, one more for each
# further rung, and the one without tools in which it writes what it found.
TURNS_WITHOUT_PROGRESS = STREAK + 2 + 1
# The same after its last new source, when all that it does is to read the old ones again in other words.
TURNS_WITHOUT_SOURCES = STALE_TURNS + 2 + 1

# No tool takes longer arguments, so it does not matter how they are written.
_MOST_CHARACTERS = 256 * 1024
MISTAKES = frozenset({"invalid_arguments", "unknown_tool"})
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Pattern(StrEnum):
    """How an agent goes in circles."""

    REPEATED_CALL = "repeated_call"
    ALTERNATING_CALLS = "alternating_calls"
    FAILING_CALLS = "failing_calls"
    REPEATED_RESULTS = "repeated_results"
    NO_NEW_SOURCES = "no_new_sources"


class Action(StrEnum):
    """What is done about it: the rungs of the ladder, lowest first."""

    NUDGED = "nudged"
    BLOCKED = "blocked"
    STOPPED = "stopped"


_RUNGS = tuple(Action)

_WHAT = {
    Pattern.REPEATED_CALL: (
        "You have called {tools} again and again with the same arguments, and the answer was the same each time."
    ),
    Pattern.ALTERNATING_CALLS: (
        "You make the same few calls in turn ({tools}), and their answers are the same each time."
    ),
    Pattern.FAILING_CALLS: (
        "Every call of your last three turns failed. Read what the answers say is wrong."
    ),
    Pattern.REPEATED_RESULTS: (
        "Your last three turns brought nothing that you did not have: you ask in other words and get the same."
    ),
    Pattern.NO_NEW_SOURCES: "Your last six turns read only documents that you had read before.",
}
_IGNORED = "Your last turn asked for nothing but calls that are not made any more."
_THEN = {
    Action.NUDGED: (
        "To go on like this leads nowhere. Do something else: ask for something different, take another "
        "tool, or write your answer with what you have."
    ),
    Action.BLOCKED: (
        "These very calls are not made any more. Do something else: ask for something different, take "
        "another tool, or write your answer with what you have."
    ),
    Action.STOPPED: (
        "You were told so before. This is your last turn and no tool can be called any more. Write your "
        "final answer now, with what you have found."
    ),
}


@dataclass(frozen=True)
class PastCall:
    """A call that was made; `result` is the same where it brought the same."""

    tool: str
    fingerprint: str
    result: str
    failed: bool = False
    mistaken: bool = False
    sources: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PastTurn:
    """The calls of one turn that were made; none when all of them were blocked."""

    calls: tuple[PastCall, ...]

    @property
    def failed(self) -> bool:
        """Whether it made calls and all of them failed."""
        return bool(self.calls) and all(call.failed for call in self.calls)

    @property
    def mistaken(self) -> bool:
        """Whether it made calls and all of them were the model's own mistakes."""
        return bool(self.calls) and all(call.mistaken for call in self.calls)

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """What was called, with what it brought."""
        return frozenset((call.fingerprint, call.result) for call in self.calls)


@dataclass(frozen=True)
class Stall:
    """A rung that was just reached; `tools` are those of the calls that are repeated."""

    pattern: Pattern
    action: Action
    tools: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """What the model is told: what it does, and what else to do."""
        # Only plain names: other words of the model must not come back as if they were ours.
        named = sorted({tool for tool in self.tools if _NAME.fullmatch(tool)})
        what = _WHAT[self.pattern].format(tools=", ".join(named) or "tools")
        return f"{what if self.tools else _IGNORED} {_THEN[self.action]}"


@dataclass(frozen=True)
class Watch:
    """The past turns of an agent, how far up the ladder it is, and the calls that are not made any more.

    `stall` is the rung that the last turn led to, None when it led to none.
    """

    turns: tuple[PastTurn, ...] = ()
    level: int = 0
    blocked: frozenset[str] = frozenset()
    pattern: Pattern = Pattern.REPEATED_CALL
    stall: Stall | None = None

    def after(self, turn: PastTurn) -> Self:
        """What it is after one more turn: one rung up, one down, or as it was."""
        turns = (*self.turns, turn)
        judged = _judged(turns)
        found = _found(turns, judged) if turn.calls else _Found(self.pattern, ())
        if found is not None:
            return self._up(turns, found)
        level = max(0, self.level - 1) if judged[-1].fresh else self.level
        return replace(self, turns=turns, level=level, stall=None)

    def unmoved(self, turn: PastTurn) -> Self:
        """What it is after a turn that something else has judged."""
        return replace(self, turns=(*self.turns, turn), stall=None)

    def _up(self, turns: tuple[PastTurn, ...], found: "_Found") -> Self:
        level = min(self.level + 1, len(_RUNGS))
        action = _RUNGS[level - 1]
        asked = frozenset(call.fingerprint for call in found.calls)
        return replace(
            self,
            turns=turns,
            level=level,
            blocked=self.blocked if action is Action.NUDGED else self.blocked | asked,
            pattern=found.pattern,
            stall=Stall(found.pattern, action, tuple(call.tool for call in found.calls)),
        )


def fingerprint(call: ToolCall) -> str:
    """The same for calls of the same tool with the same arguments, however these are written."""
    return _digest(call.name, _canonical(call.arguments))


def past_call(
    call: ToolCall, text: str, error: str | None, sources: Iterable[str], *, reads: bool
) -> PastCall:
    """A call with its answer's text and the kind of its problem.

    What a tool that only reads brings is its text; one that does something has done something else with
    other arguments, also where it says the same.
    """
    called = fingerprint(call)
    return PastCall(
        tool=call.name,
        fingerprint=called,
        result=_digest("" if reads else called, text),
        failed=error is not None,
        mistaken=error in MISTAKES,
        sources=frozenset(sources),
    )


@dataclass(frozen=True)
class _Judged:
    fresh: bool
    stale: bool


@dataclass(frozen=True)
class _Found:
    pattern: Pattern
    calls: tuple[PastCall, ...]


def _judged(turns: Iterable[PastTurn]) -> list[_Judged]:
    """Of each turn, against those before it: whether it is fresh, and whether no source in it is new."""
    results, made, sources = set[str](), set[str](), set[str]()
    judged = list[_Judged]()
    for turn in turns:
        good = [call for call in turn.calls if not call.failed]
        unseen = [call for call in good if call.result not in results or call.sources - sources]
        # The same call with another result is a look at something that changes, so it is not stale.
        other = [c for c in unseen if c.sources - sources or not c.sources or c.fingerprint in made]
        judged.append(_Judged(fresh=bool(unseen), stale=not other))
        results.update(call.result for call in turn.calls)
        made.update(call.fingerprint for call in turn.calls)
        sources.update(address for call in good for address in call.sources)
    return judged


def _found(turns: Sequence[PastTurn], judged: Sequence[_Judged]) -> _Found | None:
    if judged[-1].fresh:
        return _no_new_sources(turns, judged)
    repeated = _repeated(turns)
    nothing_else = repeated is not None and len(repeated.calls) == len(turns[-1].calls)
    return (
        _alternating(turns)
        or (repeated if nothing_else else None)
        or _failing(turns)
        or repeated
        or _repeated_results(turns, judged)
        or _no_new_sources(turns, judged)
    )


def _alternating(turns: Sequence[PastTurn]) -> _Found | None:
    pairs = [turn.pairs for turn in turns[-6:]]
    for period in (2, 3):
        cycle = pairs[-period:]
        if len(pairs) < 2 * period or pairs[-2 * period : -period] != cycle:
            continue
        if len(set(cycle)) > 1 and all(cycle):
            return _Found(Pattern.ALTERNATING_CALLS, _calls(turns[-period:]))
    return None


def _repeated(turns: Sequence[PastTurn]) -> _Found | None:
    times = Counter(pair for turn in turns for pair in turn.pairs)
    again = tuple(c for c in turns[-1].calls if times[c.fingerprint, c.result] >= REPEATED)
    return _Found(Pattern.REPEATED_CALL, again) if again else None


def _failing(turns: Sequence[PastTurn]) -> _Found | None:
    last = turns[-STREAK:]
    if len(last) < STREAK or not all(turn.failed for turn in last):
        return None
    return _Found(Pattern.FAILING_CALLS, _calls(last))


def _repeated_results(turns: Sequence[PastTurn], judged: Sequence[_Judged]) -> _Found | None:
    if len(turns) < STREAK or any(turn.fresh for turn in judged[-STREAK:]):
        return None
    return _Found(Pattern.REPEATED_RESULTS, _calls(turns[-STREAK:]))


def _no_new_sources(turns: Sequence[PastTurn], judged: Sequence[_Judged]) -> _Found | None:
    calls = _calls(turns[-STALE_TURNS:])
    if len(turns) < STALE_TURNS or not all(turn.stale for turn in judged[-STALE_TURNS:]):
        return None
    if not any(call.sources for call in calls):
        return None
    return _Found(Pattern.NO_NEW_SOURCES, calls)


def _calls(turns: Iterable[PastTurn]) -> tuple[PastCall, ...]:
    return tuple(call for turn in turns for call in turn.calls)


def _canonical(arguments: str) -> bytes:
    text = arguments.strip() or "{}"
    if len(text) > _MOST_CHARACTERS:
        return text.encode(errors="replace")
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS)
    except (ValueError, TypeError):  # no JSON, or nested deeper than can be written again
        return text.encode(errors="replace")


def _digest(first: str, second: str | bytes) -> str:
    text = second.encode(errors="replace") if isinstance(second, str) else second
    return hashlib.sha256(first.encode(errors="replace") + b"\0" + text).hexdigest()[:16]
