"""Schedules in Redis: made, read, removed, and fired, one run per slot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
from redis.asyncio import Redis

from posthouse.budget.model import Budget
from posthouse.clock import iso
from posthouse.errors import IdempotencyMismatch, NotFound, StorageUnavailable
from posthouse.events.types import Draft, RunCreated
from posthouse.ids import is_ulid
from posthouse.runs.model import SCHEMA_VERSION
from posthouse.runs.transitions import Admission
from posthouse.schedules.model import SCHEDULE_VERSION, CatchUp, Overlap, Pin, Rule, Schedule
from posthouse.storage import keys
from posthouse.storage.connect import available
from posthouse.storage.scripts import Script, Scripts, rows

SCHEDULE_KEY = "schedule_id"
SLOT_KEY = "slot"
PAGE = 100
IDEMPOTENCY_TTL_MS = 86_400_000


class Answer(StrEnum):
    """What came of a slot. LIVE: the last run must be cancelled first. FULL: later. The last three: look again."""

    FIRED = "fired"
    SKIPPED = "skipped"
    PASSED = "passed"
    LIVE = "live"
    FULL = "full"
    MOVED = "moved"
    EARLY = "early"
    GONE = "gone"


@dataclass(frozen=True)
class Kept:
    """The first answer to a new schedule; `replayed` when an earlier request with the same key made it."""

    schedule_id: str
    created_at: int
    replayed: bool


@dataclass(frozen=True)
class Firing:
    """One slot: `given` is the schedule's next slot as it was seen, `following` the one after `slot`.

    Without a slot, what is due is passed over. The run id makes it repeatable.
    """

    given: int
    slot: int | None
    following: int | None
    run_id: str
    version: int


@dataclass(frozen=True)
class Page:
    """Schedules whose slot has come, by Redis' clock (ms); `passed` of them cannot be read here.

    `upcoming` is the earliest slot behind them, None when it was not seen.
    """

    now: int
    schedules: tuple[Schedule, ...]
    passed: int
    upcoming: int | None
    more: bool


@dataclass(frozen=True)
class Listed:
    """Schedules, newest first; `cursor` is where the next ones begin."""

    schedules: tuple[Schedule, ...]
    cursor: str | None


class Schedules:
    """All schedules, on one Redis client. Everything raises StorageUnavailable."""

    def __init__(
        self, redis: Redis, scripts: Scripts | None = None, admission: Admission | None = None
    ) -> None:
        self._redis = redis
        self._scripts = scripts or Scripts(redis)
        self._admission = admission or Admission()

    async def now(self) -> int:
        """The time by Redis' clock."""
        with available():
            return _milliseconds(await self._redis.time())

    async def create(self, schedule: Schedule, key: str = "", fingerprint: str = "") -> Kept:
        """Keeps a new schedule; repeated with the same id or key, it is the same one. Raises IdempotencyMismatch."""
        verdict, schedule_id, created_at = await self._scripts.call(
            Script.SCHEDULE,
            *(schedule.schedule_id, schedule.tenant, schedule.created_at, schedule.next_slot or 0),
            *(key, fingerprint, IDEMPOTENCY_TTL_MS),
            *rows(list(_stored(schedule).items())),
        )
        if verdict == b"mismatch":
            raise IdempotencyMismatch("this Idempotency-Key was used before with another request")
        return Kept(schedule_id.decode(), int(created_at), replayed=verdict == b"replayed")

    async def get(self, schedule_id: str, tenant: str) -> Schedule:
        """The schedule. Raises NotFound, also for another tenant's."""
        if is_ulid(schedule_id):
            [fields] = await self._read([schedule_id])
            if fields.get(b"tenant") == tenant.encode():
                schedule = _readable(schedule_id, fields)
                if schedule is None:
                    raise StorageUnavailable("the schedule cannot be read here")
                return schedule
        raise NotFound(f"there is no schedule {schedule_id[:64]}")

    async def newest(self, tenant: str, limit: int, cursor: str | None) -> Listed:
        """A page of the tenant's schedules. It may be shorter than its limit and have a cursor."""
        with available():
            members = await self._redis.zrevrangebylex(
                keys.schedules_of(tenant), f"({cursor}" if cursor else "+", "-", 0, limit + 1
            )
        names = [member.decode() for member in members[:limit]]
        read = zip(names, await self._read(names), strict=True)
        found = [schedule for name, fields in read if (schedule := _readable(name, fields))]
        return Listed(tuple(found), names[-1] if len(members) > limit else None)

    async def delete(self, schedule_id: str, tenant: str) -> None:
        """Removes it; its runs stay. Raises NotFound."""
        [verdict] = await self._scripts.call(Script.UNSCHEDULE, schedule_id, tenant)
        if verdict != b"deleted":
            raise NotFound(f"there is no schedule {schedule_id[:64]}")

    async def due(self, start: int = 0) -> Page:
        """Schedules whose slot has come, the longest due first; `start` of those are left out."""
        with available():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.zrange(keys.SCHEDULES, start, start + PAGE - 1, withscores=True)
                time, members = await pipe.execute()
        now = _milliseconds(time)
        names = [name.decode() for name, slot in members if slot <= now]
        found, passed = [], 0
        for name, fields in zip(names, await self._read(names), strict=True):
            if not fields:
                await self._scripts.call(Script.UNSCHEDULE, name, "")
            elif (schedule := _readable(name, fields)) is None:
                passed += 1
            else:
                found.append(schedule)
        upcoming = int(members[len(names)][1]) if len(members) > len(names) else None
        return Page(now, tuple(found), passed, upcoming, more=len(names) == PAGE)

    async def fire(self, schedule: Schedule, firing: Firing) -> tuple[Answer, str]:
        """Makes the run of a slot and goes on to the next, or says why not, and of which run. May be repeated."""
        admission = self._admission
        metadata = dict(schedule.metadata)
        if firing.slot is not None:
            metadata |= {SCHEDULE_KEY: schedule.schedule_id, SLOT_KEY: iso(firing.slot)}
        created = RunCreated(workflow=schedule.workflow, version=firing.version)
        verdict, run_id, *_ = await self._scripts.call(
            Script.FIRE,
            *(schedule.schedule_id, firing.given, firing.slot or 0, firing.following or 0),
            *(firing.run_id, SCHEMA_VERSION, firing.version, orjson.dumps(metadata)),
            *Draft(event=created).fields(),
            *(admission.depth, admission.age_ms, admission.memory_percent),
            *rows(schedule.budget.rows() if schedule.budget else []),
        )
        return Answer(verdict.decode()), run_id.decode()

    async def _read(self, schedule_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        if not schedule_ids:
            return []
        with available():
            async with self._redis.pipeline(transaction=False) as pipe:
                for schedule_id in schedule_ids:
                    pipe.hgetall(keys.schedule(schedule_id))
                return list(await pipe.execute())


def _milliseconds(time: tuple[int, int]) -> int:
    return time[0] * 1000 + time[1] // 1000


def _readable(schedule_id: str, fields: Mapping[bytes, bytes]) -> Schedule | None:
    """The schedule; None when a newer posthouse wrote it, or a hand that does not know its form."""
    try:
        if int(fields[b"v"]) > SCHEDULE_VERSION:
            return None
        return _schedule(schedule_id, fields)
    except (KeyError, ValueError):
        return None


def _stored(schedule: Schedule) -> dict[str, str | int | bytes]:
    return {
        "v": schedule.form,
        "cron": schedule.rule.cron,
        "time_zone": schedule.rule.time_zone,
        "workflow": schedule.workflow,
        "version": schedule.version,
        "input": schedule.input,
        "metadata": orjson.dumps(dict(schedule.metadata)),
        "ttl": schedule.ttl_ms,
        "band": 10 - schedule.priority,
        "timeout": schedule.timeout_ms,
        "overlap": schedule.overlap,
        "catch_up": schedule.catch_up,
        "budget": schedule.budget.model_dump_json(exclude_none=True) if schedule.budget else "",
        "models": orjson.dumps(dict(schedule.models)) if schedule.models else "",
    }


def _schedule(schedule_id: str, fields: Mapping[bytes, bytes]) -> Schedule:
    def text(name: str) -> str:
        return fields.get(name.encode(), b"").decode()

    def whole(name: str) -> int:
        return int(text(name) or 0)

    slot, _, run_id = text("pinned").partition("|")
    metadata: dict[str, Any] = orjson.loads(text("metadata"))
    budget, models = text("budget"), orjson.loads(text("models") or "{}")
    return Schedule(
        schedule_id=schedule_id,
        tenant=text("tenant"),
        rule=Rule(text("cron"), text("time_zone")),
        workflow=text("workflow"),
        version=whole("version"),
        input=text("input"),
        metadata=metadata,
        ttl_ms=whole("ttl"),
        priority=10 - whole("band"),
        timeout_ms=whole("timeout"),
        overlap=Overlap(text("overlap")),
        catch_up=CatchUp(text("catch_up")),
        created_at=whole("created_at"),
        next_slot=whole("next") or None,
        last_slot=whole("last") or None,
        last_run=text("last_run") or None,
        fired=whole("fired"),
        skipped=whole("skipped"),
        pin=Pin(int(slot), run_id) if run_id else None,
        budget=Budget.model_validate_json(budget) if budget else None,
        models={tier: tuple(names) for tier, names in models.items()},
    )
