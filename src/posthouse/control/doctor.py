"""Looks in Redis for what outlived its run or got lost, and mends it; also while the fleet works."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from posthouse import clock
from posthouse.ids import is_ulid
from posthouse.runs.model import SCHEMA_VERSION
from posthouse.storage import keys
from posthouse.storage.connect import available
from posthouse.storage.scripts import Script, Scripts, rows

GRACE_SECONDS = 1.0
LOOKS_AGAIN = 2
_PAGE = 500
_AT_ONCE = 100
_PASSING = ("claims:", "worker:", "endpoint:", "pace:")
_SETS = {
    keys.QUEUE: "entry",
    keys.DUE: "due",
    keys.LATER: "due",
    keys.SCHEDULES: "scheduled",
}
_SETS_BY_PREFIX = {
    "index:": "index",
    "held:": "entry",
    "inputs:": "input",
    "schedules:": "scheduled",
}


class Kind(StrEnum):
    """What can be amiss with a key, or with the member of one."""

    STALE_JOB = "stale_job"
    STALE_INDEX = "stale_index"
    MISSING_INDEX = "missing_index"
    STALE_DUE = "stale_due"
    MISSING_DUE = "missing_due"
    STALE_INPUT = "stale_input"
    MISSING_INPUT = "missing_input"
    STALE_TREE = "stale_tree"
    MISSING_TREE = "missing_tree"
    STALE_SCHEDULE = "stale_schedule"
    MISSING_SCHEDULE = "missing_schedule"
    MISSED_END = "missed_end"
    LOST_CHILD = "lost_child"
    MISCOUNTED = "miscounted"
    STRAY = "stray"
    ORPHAN = "orphan"
    LEFTOVER = "leftover"
    EXPIRING = "expiring"
    LASTING = "lasting"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Thing:
    """One place to look at: a key, or the member of one; `what` is how."""

    what: str
    key: bytes
    member: bytes = b""


@dataclass(frozen=True)
class Finding:
    """Something amiss: which key, or which member of which key."""

    kind: Kind
    key: str
    member: str
    seen_at: Thing = field(repr=False)


@dataclass(frozen=True)
class Treated:
    """A finding and what was done about it, in words; `` when it is left as it is."""

    finding: Finding
    deed: str


class Doctor:
    """Examines and mends one Redis. Everything raises StorageUnavailable."""

    def __init__(
        self, redis: Redis, scripts: Scripts | None = None, *, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._redis = redis
        self._scripts = scripts or Scripts(redis)
        self._grace = grace_seconds

    async def examine(self) -> list[Finding]:
        """What is amiss now, and was when it was looked at again, twice, a grace apart."""
        found: dict[Finding, str] = {}
        page: list[Thing] = []
        async for thing in self._things():
            page.append(thing)
            if len(page) == _AT_ONCE:
                found |= await self._look(page)
                page.clear()
        found |= await self._look(page)
        for _ in range(LOOKS_AGAIN):
            if found:
                await clock.sleep(self._grace)
                still = await self._look(_places(found))
                found = {finding: "" for finding in found if finding in still}
        return list(found)

    async def mend(self, findings: Sequence[Finding]) -> list[Treated]:
        """Mends each; it is looked at once more in the same moment, so that nothing sound is touched."""
        done = await self._look(_places(findings), mend=True)
        return [Treated(finding, done.get(finding, "gone by itself")) for finding in findings]

    async def _look(self, things: Sequence[Thing], *, mend: bool = False) -> dict[Finding, str]:
        """What is amiss with these, and what was done about it."""
        found = {}
        for start in range(0, len(things), _AT_ONCE):
            part = things[start : start + _AT_ONCE]
            reply = await self._scripts.call(
                Script.DOCTOR,
                *(int(mend), SCHEMA_VERSION),
                *rows([(thing.what, thing.key, thing.member) for thing in part]),
            )
            for number, kind, key, member, deed in reply:
                place = part[int(number) - 1]
                found[Finding(Kind(kind.decode()), _text(key), _text(member), place)] = _text(deed)
        return found

    async def _things(self) -> AsyncIterator[Thing]:
        """Everything to look at, page by page; some of it may come twice."""
        cursor = 0
        while True:
            with available():
                cursor, page = await self._redis.scan(cursor, count=_PAGE)
            for key in page:
                for thing in _seen(key):
                    yield thing
                if (what := _members_of(_text(key))) is not None:
                    async for member in self._members(key):
                        yield Thing(what, key, member)
            if cursor == 0:
                return

    async def _members(self, key: bytes) -> AsyncIterator[bytes]:
        cursor = 0
        while True:
            with available():
                try:
                    cursor, page = await self._redis.zscan(key, cursor, count=_PAGE)
                except ResponseError:  # no sorted set: not ours
                    return
            for member, _ in page:
                yield member
            if cursor == 0:
                return


def _seen(key: bytes) -> Iterable[Thing]:
    """What is to be looked at when there is such a key; idempotency keys end by themselves."""
    match _text(key).split(":"):
        case ["run", run_id] if is_ulid(run_id):
            yield Thing("record", key, run_id.encode())
        case ["run", run_id, *_] if is_ulid(run_id):
            yield Thing("part", key)
        case ["schedule", schedule_id] if is_ulid(schedule_id):
            yield Thing("schedule", key, schedule_id.encode())
        case _ if _text(key).startswith(keys.ARQ_PREFIXES):
            yield Thing("job", key)
        case _ if _text(key).startswith(_PASSING):
            yield Thing("passing", key)
        case _:
            pass


def _members_of(key: str) -> str | None:
    """How to look at the members of a sorted set; None for every other key."""
    by_prefix = (what for prefix, what in _SETS_BY_PREFIX.items() if key.startswith(prefix))
    return _SETS.get(key) or next(by_prefix, None)


def _places(findings: Iterable[Finding]) -> list[Thing]:
    return list(dict.fromkeys(finding.seen_at for finding in findings))


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
