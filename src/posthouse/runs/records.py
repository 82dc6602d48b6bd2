"""Run records as they are read: one by id, or a list of them, newest first."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from posthouse.errors import NotFound, StorageUnavailable
from posthouse.ids import is_ulid
from posthouse.runs.model import (
    FIELDS,
    NEWER,
    SCHEMA_VERSION,
    SUMMARY_FIELDS,
    RunRecord,
    Status,
    record_from,
)
from posthouse.storage import keys
from posthouse.storage.connect import available

READ_AT_ONCE = 100
LOOK_AT_MOST = 2_000


@dataclass(frozen=True)
class Listing:
    """Runs without inputs and outputs, newest first; `cursor` is where the next ones begin."""

    runs: tuple[RunRecord, ...]
    cursor: str | None


@dataclass(frozen=True)
class Wanted:
    """Which runs a list shall have; `cursor` is that of the list before."""

    tenant: str
    status: Status | None = None
    workflow: str | None = None
    limit: int = 20
    cursor: str | None = None


class Records:
    """All runs, on one Redis client. Everything raises StorageUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get(self, run_id: str, tenant: str) -> RunRecord:
        """The record. Raises NotFound, also for another tenant's run; StorageUnavailable for one it cannot read."""
        if is_ulid(run_id):
            with available():
                form, *values = await self._redis.hmget(  # type: ignore[misc]
                    keys.run(run_id), ["v", *FIELDS]
                )
            fields = dict(zip(FIELDS, values, strict=True))
            if fields["status"] and fields["tenant"] == tenant.encode():
                if _is_newer(form):
                    raise StorageUnavailable(NEWER)
                return record_from(run_id, fields)
        raise NotFound(f"there is no run {run_id[:64]}")

    async def newest(self, wanted: Wanted) -> Listing:
        """A list of runs. It may be shorter than its limit, and have a cursor, when few match."""
        found: list[RunRecord] = []
        cursor = wanted.cursor
        for _ in range(0, LOOK_AT_MOST, READ_AT_ONCE):
            run_ids = await self._ids(wanted, cursor)
            for record in await self._summaries(run_ids):
                cursor = record.run_id
                if _matches(record, wanted):
                    found.append(record)
                if len(found) == wanted.limit:
                    return Listing(tuple(found), cursor)
            if len(run_ids) < READ_AT_ONCE:
                return Listing(tuple(found), None)
            cursor = run_ids[-1]
        return Listing(tuple(found), cursor)

    async def dead(self, tenant: str, limit: int, cursor: str | None) -> Listing:
        """The tenant's runs that were given up, newest first."""
        newest = "+" if cursor is None else f"({cursor}"
        with available():
            ids = await self._redis.zrevrangebylex(
                keys.index(tenant, "dead"), newest, "-", 0, limit
            )
        run_ids = [run_id.decode() for run_id in ids]
        records = await self._summaries(run_ids)
        return Listing(tuple(records), run_ids[-1] if len(run_ids) == limit else None)

    async def _ids(self, wanted: Wanted, cursor: str | None) -> list[str]:
        key = keys.index(wanted.tenant, wanted.status)
        newest = "+" if cursor is None else f"({cursor}"
        with available():
            members = await self._redis.zrevrangebylex(key, newest, "-", 0, READ_AT_ONCE)
        return [member.decode() for member in members]

    async def _summaries(self, run_ids: Sequence[str]) -> list[RunRecord]:
        """Those that are still there and can be read; an index entry can outlive its run for a moment."""
        if not run_ids:
            return []
        with available():
            pipe = self._redis.pipeline(transaction=False)
            for run_id in run_ids:
                pipe.hmget(keys.run(run_id), ["v", *SUMMARY_FIELDS])
            rows = await pipe.execute()
        records = []
        for run_id, (form, *values) in zip(run_ids, rows, strict=True):
            fields = dict(zip(SUMMARY_FIELDS, values, strict=True))
            if fields["status"] and not _is_newer(form):
                records.append(record_from(run_id, fields, "summary"))
        return records


def _is_newer(form: bytes | None) -> bool:
    """Whether a later version of posthouse wrote it, during a deploy."""
    return int(form or 0) > SCHEMA_VERSION


def _matches(record: RunRecord, wanted: Wanted) -> bool:
    return (
        record.tenant == wanted.tenant
        and wanted.workflow in (None, record.workflow)
        and wanted.status in (None, record.status)
    )
