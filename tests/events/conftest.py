"""A run whose log the tests write by hand, in the form of the scripts."""

import json
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from posthouse.events.hub import Hub
from posthouse.ids import new_run_id
from posthouse.storage import keys
from posthouse.storage.connect import connect


class Scribe:
    """Writes one run: its log, its status, and what is published of it."""

    def __init__(self, redis: Redis, run_id: str) -> None:
        self.redis = redis
        self.run_id = run_id
        self.seq = 0
        self.envelopes: list[bytes] = []

    async def write(
        self,
        kind: str,
        *,
        data: str = "{}",
        agent: str = "",
        step: str = "",
        run_id: str = "",
        epoch: int = 1,
        publish: bool = True,
    ) -> bytes:
        """One event; `run_id` is given for a copy of a child's."""
        self.seq += 1
        own = run_id or self.run_id
        entry = {"type": kind, "time": 1_700_000_000_000 + self.seq, "epoch": epoch, "run_id": own}
        facts = {"agent": agent, "step": step, "data": data}
        head = {"seq": self.seq, "type": kind, "run_id": own, "epoch": epoch, "time": entry["time"]}
        head |= {name: facts[name] for name in ("agent", "step") if facts[name]}
        text = json.dumps(head, separators=(",", ":"))[:-1] + f',"data":{data}}}'
        self.envelopes.append(text.encode())
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.xadd(keys.events(self.run_id), entry | facts, id=f"{self.seq}-0")
            pipe.hset(keys.run(self.run_id), mapping=self._state(kind, own))
            if publish:
                pipe.publish(keys.events(self.run_id), text)
            await pipe.execute()
        return text.encode()

    def _state(self, kind: str, run_id: str) -> dict[str, str | int]:
        ends = ("run.completed", "run.incomplete", "run.failed", "run.cancelled")
        if run_id != self.run_id:
            return {"seq": self.seq}
        status = kind.removeprefix("run.") if kind in ends else "running"
        return {"seq": self.seq, "status": status, "tenant": "default"}

    async def delta(self, text: str, *, offset: int = 0, epoch: int = 1) -> bytes:
        """A piece of text that is pushed only."""
        line = (
            f'{{"type":"message.delta","run_id":"{self.run_id}","epoch":{epoch},"time":1,'
            f'"step":"a/turn:1","data":{{"offset":{offset},"text":"{text}"}}}}'
        )
        await self.redis.publish(keys.events(self.run_id), line)
        return line.encode()


@pytest.fixture
def new_scribe(redis: Redis) -> Callable[[], Scribe]:
    """Makes runs on the shared server."""
    return lambda: Scribe(redis, new_run_id())


@pytest.fixture
def scribe(new_scribe: Callable[[], Scribe]) -> Scribe:
    """One run on the shared server."""
    return new_scribe()


@pytest.fixture
async def hub(redis: Redis, valkey_url: str) -> AsyncIterator[Hub]:
    """A hub on the shared server that checks by itself only once in a long while."""
    client = connect(valkey_url)
    async with client, Hub(client, keep_alive_seconds=60, capacity=64) as opened:
        yield opened
    await client.connection_pool.disconnect()
