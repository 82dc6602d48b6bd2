"""The fleet as an operator sees it: what waits, who works, what has been given up."""

from collections.abc import Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from posthouse.storage import keys
from posthouse.storage.connect import available

BAND = 10**11
SEEN_WITHIN_SECONDS = 60
MOST_WORKERS = 1_000


@dataclass(frozen=True)
class QueueState:
    """What waits for a worker: runs to begin, runs to go on, and those of versions that no worker reads.

    `first_waited_ms` is how long the next one to begin has waited.
    """

    new: int
    continuing: int
    held: int
    first_waited_ms: int
    taken_per_second: float
    memory_percent: int


@dataclass(frozen=True)
class WorkerState:
    """A worker by its last heartbeat, at `seen_at` (ms); `alive` when that is less than three leases ago.

    Of one that is not alive nothing else is known: None.
    """

    worker_id: str
    alive: bool
    seen_at: int
    started_at: int | None
    host: str | None
    pid: int | None
    version: str | None
    slots: int | None
    running: int | None
    draining: bool | None
    workflows: tuple[str, ...]


class Fleet:
    """Queue and workers, on one Redis client. Everything raises StorageUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def queue(self) -> QueueState:
        """What waits now."""
        with available():
            pipe = self._redis.pipeline(transaction=False)
            pipe.time()
            pipe.zcount(keys.QUEUE, BAND, "+inf")
            pipe.zcard(keys.QUEUE)
            pipe.zrangebyscore(keys.QUEUE, BAND, "+inf", 0, 1)
            pipe.hgetall(keys.DRAINED)
            pipe.hget(keys.SWEEP, "memory")
            pipe.smembers(keys.HELD)
            (seconds, micros), new, total, first, drained, memory, held = await pipe.execute()
            now = seconds * 1000 + micros // 1000
            waited = await self._age(first, now)
            for key in held:
                pipe.zcard(key)
            waiting = await pipe.execute() if held else []
        return QueueState(
            new, total - new, sum(waiting), waited, _rate(drained, now), int(memory or 0)
        )

    async def _age(self, first: list[bytes], now: int) -> int:
        if not first:
            return 0
        run_id = first[0].decode().partition(":")[0]
        since = await self._redis.hget(keys.run(run_id), "updated_at")  # type: ignore[misc]
        return max(0, now - int(since)) if since else 0

    async def workers(self) -> list[WorkerState]:
        """Every worker that was heard of within the last minute, by id."""
        with available():
            seconds, _ = await self._redis.time()
            seen = await self._redis.zrangebyscore(
                keys.WORKERS, (seconds - SEEN_WITHIN_SECONDS) * 1000, "+inf", 0, MOST_WORKERS, True
            )
            pipe = self._redis.pipeline(transaction=False)
            for worker_id, _ in seen:
                pipe.hgetall(keys.worker(worker_id.decode()))
            rows = await pipe.execute()
        workers = [
            _worker(worker_id.decode(), int(seen_at), row)
            for (worker_id, seen_at), row in zip(seen, rows, strict=True)
        ]
        return sorted(workers, key=lambda worker: worker.worker_id)


def _worker(worker_id: str, seen_at: int, row: Mapping[bytes, bytes]) -> WorkerState:
    text = {name.decode(): value.decode() for name, value in row.items()}
    number = {name: int(value) for name, value in text.items() if value.isdecimal()}
    draining = number.get("draining")
    return WorkerState(
        worker_id,
        alive=bool(row),
        seen_at=seen_at,
        started_at=number.get("started_at"),
        host=text.get("host"),
        pid=number.get("pid"),
        version=text.get("version"),
        slots=number.get("slots"),
        running=number.get("running"),
        draining=None if draining is None else bool(draining),
        workflows=tuple(text.get("workflows", "").split()),
    )


def _rate(drained: dict[bytes, bytes], now: int) -> float:
    """Runs per second that were taken lately."""
    if not drained:
        return 0.0
    number = {name: int(value) for name, value in drained.items()}
    count = number.get(b"count", 0) + number.get(b"former_count", 0)
    passed = now - number.get(b"since", now) + number.get(b"former_ms", 0)
    return round(count * 1000 / max(passed, 1), 3)
