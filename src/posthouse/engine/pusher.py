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

    def push(self, run: Claimed, delta: MessageDelta, *, agent: str, step: str) -> None:
        """Takes a delta; what is beyond the backlog is dropped."""
        if len(self._waiting) >= BACKLOG:
            return
        envelope = (
            f'{{"type":"message.delta","run_id":"{run.run_id}","epoch":{run.epoch},'
            f'"time":{clock.wall_ms()},"agent":"{agent}","step":"{step}","data":{delta.data_json()}}}'
        )
        self._waiting.append((keys.events(run.run_id), envelope))
        self._filled.set()

    async def run(self) -> None:
        """Sends what was taken, for ever."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            batch, self._waiting = self._waiting, []
            try:
                with available():
                    pipe = self._redis.pipeline(transaction=False)
                    for channel, envelope in batch:
                        pipe.publish(channel, envelope)
                    await pipe.execute()
            except StorageUnavailable:
                continue
