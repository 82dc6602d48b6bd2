"""What an endpoint says in its answers' headers of the limits on its rate."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

_MOST = 10**12
_LONGEST_SECONDS = 86_400.0
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|h|m|s))+")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# `{}` is requests or tokens; limit, remaining, reset.
_NAMES = (
    ("x-ratelimit-limit-{}", "x-ratelimit-remaining-{}", "x-ratelimit-reset-{}"),
    (
        "anthropic-ratelimit-{}-limit",
        "anthropic-ratelimit-{}-remaining",
        "anthropic-ratelimit-{}-reset",
    ),
)


@dataclass(frozen=True)
class Allowance:
    """How many a minute, and how many are left now; -1 where it was not said."""

    limit: int = -1
    left: int = -1


@dataclass(frozen=True)
class Told:
    """The limits of one answer; `reset` in seconds until what is used up comes back, None when nothing is."""

    requests: Allowance = Allowance()
    tokens: Allowance = Allowance()
    reset: float | None = None


def told_by(headers: Mapping[str, str], now_ms: int) -> Told | None:
    """What the headers say, None when it is nothing; whatever cannot be read was not said."""
    requests, first = _allowance(headers, "requests", now_ms)
    tokens, second = _allowance(headers, "tokens", now_ms)
    if requests.limit < 0 and tokens.limit < 0:
        return None
    resets = [reset for reset in (first, second) if reset is not None]
    return Told(requests, tokens, max(resets, default=None))


def _allowance(
    headers: Mapping[str, str], what: str, now_ms: int
) -> tuple[Allowance, float | None]:
    for limit_name, left_name, reset_name in _NAMES:
        limit = _count(headers.get(limit_name.format(what)))
        if limit > 0:
            left = min(_count(headers.get(left_name.format(what))), limit)
            reset = _seconds(headers.get(reset_name.format(what)), now_ms) if left == 0 else None
            return Allowance(limit, left), reset
    return Allowance(), None


def _count(text: str | None) -> int:
    if not text or not text.isascii() or not text.isdigit() or len(text) > 13:
        return -1
    return min(int(text), _MOST)


def _seconds(text: str | None, now_ms: int) -> float | None:
    """A length such as 6m0s, or a moment such as 2026-01-31T10:00:00Z."""
    if not text or len(text) > 40:
        return None
    if _DURATION.fullmatch(text):
        length = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
        return min(length, _LONGEST_SECONDS)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, moment.timestamp() - now_ms / 1000), _LONGEST_SECONDS)
