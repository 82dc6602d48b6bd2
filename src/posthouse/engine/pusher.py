"""Pieces of text for whoever reads a run now: pushed, never stored, never in the way."""

import asyncio

from redis.asyncio import Redis

from posthouse import clock
from posthouse.errors import StorageUnavailable
from posthouse.events.types import MessageDelta
from posthouse.runs.ownership import Claimed
from posthouse.storage import keys
from posthouse.storage.connect import available

BACKLOG = 2000


class Pusher:
    """Publishes the deltas of a worker, those of one moment in one round trip; drops them while Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[tuple[str, str]] = []
        self._filled = asyncio.Event()
        # One event a batch: the one that is being collected, and the one that is on its way.
        self._collected, self._sending = asyncio.Event(), asyncio.Event()
        self._sending.set()

    def push(self, run: Claimed, delta: MessageDelta, *, agent: str, step: str) -> None:
        """Takes a delta; what is beyond the backlog is dropped."""
        if len(self._waiting) >= BACKLOG:
            return
        envelope = (
            f'{{"type":"message.delta","run_id":"{run.run_id}","epoch":{run.epoch},'
            f'"time":{clock.wall_ms()},"agent":"{agent}","step":"{step}","data":{delta.data_json()}}}'
        )
        self._waiting += [(keys.events(reader), envelope) for reader in {run.run_id, run.root}]
        self._filled.set()

    async def sent(self) -> None:
        """Returns when everything that was taken so far has left, or was dropped."""
        await (self._collected if self._waiting else self._sending).wait()

    async def run(self) -> None:
        """Sends what was taken, for ever."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            batch, self._waiting = self._waiting, []
            self._sending, self._collected = self._collected, asyncio.Event()
            try:
                await self._publish(batch)
            except StorageUnavailable:
                continue
            finally:
                self._sending.set()

    async def _publish(self, batch: list[tuple[str, str]]) -> None:
        with available():
            pipe = self._redis.pipeline(transaction=False)
            for channel, envelope in batch:
                pipe.publish(channel, envelope)
            await pipe.execute()
