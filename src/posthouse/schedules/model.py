"""When a schedule is due: cron expressions in their time zones, overlap, catch-up. Pure; times in ms since 1970."""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import takewhile
from typing import assert_never
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from posthouse.budget.model import Budget
from posthouse.errors import InvalidRequest

# 1: the first form; 2: with a budget or models, which who reads only 1 would leave out.
SCHEDULE_VERSION = 2
MOST_CAUGHT_UP = 1_000
# A slot that is looked at within this time is on time, whatever else was missed.
ON_TIME_MS = 60_000
LONGEST_EXPRESSION = 100

# How many values each part of an expression has: a longer step would never be taken.
_VALUES = {"minute": 60, "hour": 24, "day of month": 31, "month": 12, "day of week": 7}
_MINUTE_MS = 60_000
_WIDER = 4
_MINUTE = timedelta(minutes=1)
_ALL_HOURS = set(range(24))
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+/-]{0,63}")
# What these mean differs from one machine to the next.
_MACHINES_OWN = ("localtime", "posixrules")
# Second copies that only some machines have; the first ones count leap seconds, which no clock of ours does.
_COPIES = ("right/", "posix/")


class Overlap(StrEnum):
    """What becomes of a slot while the schedule's last run still lives."""

    SKIP = "skip"
    ALLOW = "allow"
    CANCEL_OTHER = "cancel_other"


class CatchUp(StrEnum):
    """Which of the slots that passed while nobody looked are made good."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


@dataclass(frozen=True)
class Rule:
    """A cron expression of five fields in a time zone; made by `rule_of`, which checks both."""

    cron: str
    time_zone: str

    def slots_after(self, moment: int) -> Iterator[int]:
        """The slots later than the moment, in order, each once.

        An expression for certain hours means local time: a time that the clocks skip is due right after the gap, one
        that they show twice is due the first time. One for every hour follows the time that really passes.
        """
        parts = self.cron.split()
        zone = ZoneInfo(self.time_zone)
        start = datetime.fromtimestamp(moment / 1000, UTC).astimezone(zone)
        latest = moment
        if set(CronSim(self.cron, start).hours) == _ALL_HOURS:
            # Said with a star, the library walks by real time.
            parts[1] = "*"
            found: Iterator[datetime] = CronSim(" ".join(parts), start)
        else:
            local = CronSim(self.cron, start.replace(tzinfo=None))
            found = (_first_real(slot, zone) for slot in local)
        for slot in found:
            at = round(slot.timestamp() * 1000)
            if at > latest:
                latest = at
                yield at

    def next_after(self, moment: int) -> int | None:
        """The first slot later than the moment; None when there is none for decades."""
        return next(self.slots_after(moment), None)

    def due(self, since: int, now: int, catch_up: CatchUp, most: int = MOST_CAUGHT_UP) -> list[int]:
        """The slots from `since` to `now` that are to fire, in order; of too many, the last ones."""
        match catch_up:
            case CatchUp.ALL:
                return self._last(since, now, most)
            case CatchUp.LAST:
                return self._last(since, now, 1)
            case CatchUp.NONE:
                return [slot for slot in self._last(since, now, 1) if now - slot <= ON_TIME_MS]
            case _:
                assert_never(catch_up)

    def _last(self, since: int, now: int, count: int) -> list[int]:
        # Walked from the end, in windows that grow: nobody looked for a year, and the rule says every minute.
        window = count * _MINUTE_MS
        while True:
            start = max(since, now - window)
            within = takewhile(lambda slot: slot <= now, self.slots_after(start - 1))
            found = deque(within, maxlen=count)
            if len(found) == count or start == since:
                return list(found)
            window *= _WIDER


def rule_of(cron: str, time_zone: str) -> Rule:
    """The rule. Raises InvalidRequest, which says what part of which field is wrong."""
    expression = " ".join(cron.split())
    if len(expression) > LONGEST_EXPRESSION:
        raise _wrong("cron", f"must have at most {LONGEST_EXPRESSION} characters")
    if len(expression.split()) != 5:
        raise _wrong("cron", "must have five parts: minute, hour, day of month, month, day of week")
    zone = _zone(time_zone)
    try:
        found = next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)), None)
    except CronSimError as error:
        part = str(error).removeprefix("Bad ").replace("-", " ")
        raise _wrong("cron", f"the {part} is not right in {expression!r}") from None
    _check_steps(expression)
    if found is None:
        raise _wrong("cron", f"there is no moment that fits {expression!r}")
    return Rule(expression, zone.key)


def _check_steps(expression: str) -> None:
    """Raises InvalidRequest for a step that is longer than its part has values, as in `*/61` of the minutes."""
    for (part, values), text in zip(_VALUES.items(), expression.split(), strict=True):
        if any(int(step) > values for step in re.findall(r"/(\d+)", text)):
            raise _wrong("cron", f"the {part} is not right in {expression!r}")


def _zone(name: str) -> ZoneInfo:
    known = name not in _MACHINES_OWN and not name.lower().startswith(_COPIES)
    if known and _ZONE.fullmatch(name):
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise _wrong("time_zone", f"there is no time zone {name[:64]!r}; one is Europe/Berlin or UTC")


def _wrong(location: str, message: str) -> InvalidRequest:
    error = {"location": location, "message": message}
    return InvalidRequest(f"{location}: {message}", errors=(error,))


def _first_real(local: datetime, zone: ZoneInfo) -> datetime:
    """The first moment at which clocks there show this time, or any later one."""
    while True:
        moment = local.replace(tzinfo=zone)
        if moment.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == local:
            return moment
        local += _MINUTE


@dataclass(frozen=True)
class Pin:
    """A slot that was begun, and the run that it has or will have."""

    slot: int
    run_id: str


@dataclass(frozen=True)
class Schedule:
    """A schedule as it is kept. `input` is JSON text; `next_slot` None when there is no further one.

    Priority 1 to 9, 9 begins first; `ttl_ms` counts from a run's end; `version` is the workflow's when it was made.
    `budget` and `models` (by tier, as `provider:model`) are those of each run.
    """

    schedule_id: str
    tenant: str
    rule: Rule
    workflow: str
    version: int
    input: str
    metadata: Mapping[str, str]
    ttl_ms: int
    priority: int = 5
    timeout_ms: int = 0
    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.LAST
    created_at: int = 0
    next_slot: int | None = None
    last_slot: int | None = None
    last_run: str | None = None
    fired: int = 0
    skipped: int = 0
    pin: Pin | None = None
    budget: Budget | None = None
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def form(self) -> int:
        """The lowest version of the stored form that says all of it."""
        return SCHEDULE_VERSION if self.budget or self.models else 1
