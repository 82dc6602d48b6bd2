"""The event log of a run, as it is read: pages of envelopes, and how far the run has come."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from posthouse.events.types import TERMINAL_TYPES
from posthouse.storage import keys
from posthouse.storage.connect import available

PAGE_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Logged:
    """One event of a log; `envelope` is one line of JSON, byte for byte as it was published."""

    seq: int
    type: str
    run_id: str
    epoch: int
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a log and how the run stood at that very moment.

    `seq` is that of the run's last event; `ended` says that the run is terminal, `missing` that
    there is no such run.
    """

    events: tuple[Logged, ...]
    seq: int
    ended: bool
    missing: bool


class EventLog:
    """The logs of all runs, on one Redis client. Everything raises StorageUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def read(self, run_id: str, after: int, limit: int = PAGE_LIMIT) -> tuple[Logged, ...]:
        """At most `limit` events with a seq above `after`, in order."""
        with available():
            entries = await self._redis.xrange(keys.events(run_id), f"{after + 1}-0", "+", limit)
        return tuple(_logged(identity, fields) for identity, fields in entries)

    async def page(self, run_id: str, after: int, limit: int = PAGE_LIMIT) -> Page:
        """The same with the run's state, both of one moment."""
        with available():
            pipe = self._redis.pipeline(transaction=True)
            pipe.xrange(keys.events(run_id), f"{after + 1}-0", "+", limit)
            pipe.hmget(keys.run(run_id), ["status", "seq"])
            entries, (status, seq) = await pipe.execute()
        return Page(
            events=tuple(_logged(identity, fields) for identity, fields in entries),
            seq=int(seq or 0),
            ended=status is not None and f"run.{status.decode()}" in TERMINAL_TYPES,
            missing=status is None,
        )

    async def last_seq(self, run_id: str) -> int:
        """The seq of the last event in the log itself, 0 when there is none."""
        with available():
            entries = await self._redis.xrevrange(keys.events(run_id), "+", "-", 1)
        return _seq(entries[0][0]) if entries else 0

    async def seqs(self, run_ids: Sequence[str]) -> list[int | None]:
        """How far each run has come, in one round trip; None for a run that is gone."""
        with available():
            pipe = self._redis.pipeline(transaction=False)
            for run_id in run_ids:
                pipe.hget(keys.run(run_id), "seq")
            values: list[bytes | None] = await pipe.execute()
        return [None if value is None else int(value) for value in values]


def _seq(identity: bytes) -> int:
    return int(identity.partition(b"-")[0])


def _logged(identity: bytes, fields: Mapping[bytes, bytes]) -> Logged:
    seq = _seq(identity)
    return Logged(
        seq,
        fields[b"type"].decode(),
        fields[b"run_id"].decode(),
        int(fields[b"epoch"]),
        _envelope(seq, fields),
    )


def _envelope(seq: int, fields: Mapping[bytes, bytes]) -> bytes:
    """Joined as text, in the order and form in which the scripts publish it."""
    head = b'{"seq":%d,"type":"%b","run_id":"%b","epoch":%b,"time":%b' % (
        seq, fields[b"type"], fields[b"run_id"], fields[b"epoch"], fields[b"time"],
    )  # fmt: skip
    agent, step = fields.get(b"agent"), fields.get(b"step")
    if agent:
        head += b',"agent":"%b"' % agent
    if step:
        head += b',"step":"%b"' % step
    return head + b',"data":%b}' % fields[b"data"]
