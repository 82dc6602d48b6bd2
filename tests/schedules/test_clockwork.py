"""Workers that fire schedules: one run per slot, whoever dies while doing it."""

import asyncio
import json
from collections import defaultdict
from itertools import islice
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse.clock import iso
from posthouse.engine.clockwork import Clockwork
from posthouse.errors import StorageUnavailable
from posthouse.ids import new_schedule_id
from posthouse.runs.model import Status
from posthouse.runs.transitions import Admission, Transitions
from posthouse.schedules.model import CatchUp, Overlap, Rule, Schedule
from posthouse.schedules.store import PAGE, Schedules
from posthouse.storage import keys
from posthouse.storage.connect import connect
from posthouse.storage.scripts import Script, Scripts
from posthouse.telemetry import Metrics
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

DAILY = Rule("0 6 * * *", "UTC")
MINUTELY = Rule("* * * * *", "UTC")
WORKERS = 3
RULES = [
    MINUTELY,
    Rule("*/20 * * * *", "Europe/Berlin"),
    Rule("30 2 * * *", "Europe/Berlin"),
    Rule("0 9 * * MON-FRI", "America/New_York"),
]


async def keep(redis: Redis, late: int, rule: Rule = DAILY, **fields: Any) -> Schedule:
    """A schedule that nobody has looked at for so many slots."""
    schedules = Schedules(redis)
    now = await schedules.now()
    first = rule.due(1, now, CatchUp.ALL, late)[0] if late else rule.next_after(now)
    whole = {
        "schedule_id": new_schedule_id(), "tenant": "default", "rule": rule, "workflow": "echo", "version": 1,
        "input": "{}", "metadata": {}, "ttl_ms": 60_000, "created_at": now, "next_slot": first,
    } | fields  # fmt: skip
    schedule = Schedule(**whole)
    await schedules.create(schedule)
    return schedule


def clockwork(redis: Redis, scripts: Scripts | None = None, **admission: int) -> Clockwork:
    schedules = Schedules(redis, scripts, Admission(**admission))
    return Clockwork(schedules, Transitions(redis), {"echo": 3})


async def runs(redis: Redis) -> list[dict[bytes, bytes]]:
    async with redis.pipeline(transaction=False) as pipe:
        for run_id in await redis.zrange(keys.index("default"), 0, -1):
            pipe.hgetall(keys.run(run_id.decode()))
        return await pipe.execute()


async def statuses(redis: Redis) -> list[bytes]:
    return [run[b"status"] for run in await runs(redis)]


class Perilous(Scripts):
    """Now and then a worker dies as it fires: before, while or after it is done. Or it is done and nobody told."""

    def __init__(self, redis: Redis, random: Random) -> None:
        super().__init__(redis)
        self._random = random

    async def call(self, script: Script, *arguments: str | int | bytes) -> list[Any]:
        if script is not Script.FIRE:
            return await super().call(script, *arguments)
        fate, task = self._random.random(), asyncio.current_task()
        assert task is not None
        if fate < 0.01:
            raise asyncio.CancelledError
        if fate < 0.02:
            asyncio.get_running_loop().call_later(self._random.random() / 1000, task.cancel)
        reply = await super().call(script, *arguments)
        if fate > 0.99:
            raise asyncio.CancelledError
        if fate > 0.985:
            raise StorageUnavailable("the reply was lost")
        return reply


async def work(url: str, random: Random) -> int:
    """Fires until nothing is due; how often the worker died and another one took its place."""
    deaths = 0
    async with connect(url) as redis:
        while (await Schedules(redis).due()).schedules:
            looking = asyncio.create_task(clockwork(redis, Perilous(redis, random)).look())
            await asyncio.wait([looking])
            deaths += looking.cancelled()
            if not looking.cancelled():
                looking.result()
    return deaths


async def test_two_thousand_slots_three_workers_random_deaths_one_run_a_slot(
    redis: Redis, valkey_url: str
) -> None:
    kept = {}
    for rule in RULES:
        for _ in range(2):
            one = await keep(
                redis, 250, rule, overlap=Overlap.ALLOW, catch_up=CatchUp.ALL, version=1
            )
            kept[one.schedule_id] = one
    random = Random(7)
    deaths = await asyncio.gather(*(work(valkey_url, random) for _ in range(WORKERS)))

    slots = defaultdict(list)
    for run in await runs(redis):
        metadata = json.loads(run[b"metadata"])
        slots[metadata["schedule_id"]].append(metadata["slot"])
    assert sum(map(len, slots.values())) >= 2_000
    for schedule_id, one in kept.items():
        after = await Schedules(redis).get(schedule_id, "default")
        expected = list(islice(one.rule.slots_after(one.next_slot - 1), after.fired))
        assert len(expected) >= 250
        assert sorted(slots[schedule_id]) == [iso(slot) for slot in expected]
        assert (after.last_slot, after.skipped) == (expected[-1], 0)
    print(f"{sum(map(len, slots.values()))} slots, one run each; workers died {sum(deaths)} times")
    assert sum(deaths) > 20


@pytest.mark.parametrize(("catch_up", "fired"), [("none", 0), ("last", 1), ("all", 5)])
async def test_what_was_missed_is_made_good_as_wanted(
    redis: Redis, catch_up: str, fired: int
) -> None:
    one = await keep(
        redis, 5, Rule("0 0 1 * *", "UTC"), catch_up=CatchUp(catch_up), overlap=Overlap.ALLOW
    )
    await clockwork(redis).look()
    assert len(await runs(redis)) == fired
    after = await Schedules(redis).get(one.schedule_id, "default")
    assert (after.fired, after.skipped) == (fired, 0)
    assert after.next_slot == one.rule.next_after(await Schedules(redis).now())


@pytest.mark.parametrize(
    ("overlap", "ends", "skipped"),
    [
        ("skip", [b"pending"], 2),
        ("allow", [b"pending"] * 3, 0),
        ("cancel_other", [b"cancelled", b"cancelled", b"pending"], 0),
    ],
)
async def test_what_overlaps_is_treated_as_wanted(
    redis: Redis, overlap: str, ends: list[bytes], skipped: int
) -> None:
    one = await keep(redis, 3, overlap=Overlap(overlap), catch_up=CatchUp.ALL)
    await clockwork(redis).look()
    assert await statuses(redis) == ends
    after = await Schedules(redis).get(one.schedule_id, "default")
    assert (after.fired, after.skipped) == (len(ends), skipped)


async def test_of_workers_that_cancel_the_same_run_one_counts_it(redis: Redis) -> None:
    one = await keep(redis, 1, MINUTELY, overlap=Overlap.CANCEL_OTHER)
    await clockwork(redis).look()
    # Its slot comes again while that run lives, and all of them see both.
    await redis.hset(keys.schedule(one.schedule_id), "next", str(one.next_slot))
    await redis.zadd(keys.SCHEDULES, {one.schedule_id: 1})
    metrics = Metrics(CollectorRegistry())
    looking = [
        Clockwork(Schedules(redis), Transitions(redis), {"echo": 3}, metrics)
        for _ in range(WORKERS)
    ]
    await asyncio.gather(*(worker.look() for worker in looking))
    assert await statuses(redis) == [b"cancelled", b"pending"]
    assert b'workflow_status_total{status="cancelled"} 1.0' in metrics.render()


async def test_a_full_queue_delays_and_loses_nothing(redis: Redis) -> None:
    one = await keep(redis, 1, MINUTELY, catch_up=CatchUp.NONE)
    await clockwork(redis, depth=0).look()
    assert await runs(redis) == []
    # As when it was full for longer than a slot is on time.
    key, slot = keys.schedule(one.schedule_id), one.next_slot - 5 * 60_000
    pin = (await redis.hget(key, "pinned")).partition(b"|")[2]
    await redis.hset(key, mapping={"next": slot, "pinned": b"%d|%b" % (slot, pin)})
    await clockwork(redis).look()
    [run] = await runs(redis)
    assert json.loads(run[b"metadata"])["slot"] == iso(slot)
    assert (await Schedules(redis).get(one.schedule_id, "default")).pin is None


async def test_the_newest_version_that_is_known_runs(redis: Redis) -> None:
    for version in (1, 5):
        await keep(redis, 1, version=version)
    await keep(redis, 1, workflow="elsewhere", version=2)
    await clockwork(redis).look()
    fired = {(run[b"workflow"], run[b"version"]) for run in await runs(redis)}
    assert fired == {(b"echo", b"3"), (b"echo", b"5"), (b"elsewhere", b"2")}


async def test_many_at_once_and_some_that_cannot_be_kept(redis: Redis) -> None:
    broken = [await keep(redis, 2) for _ in range(3)]
    for one in broken:
        await redis.hset(keys.schedule(one.schedule_id), "time_zone", "Nowhere/At_All")
    newer = [await keep(redis, 2) for _ in range(3)]
    for one in newer:
        await redis.hset(keys.schedule(one.schedule_id), "v", "99")
    for _ in range(PAGE + 5):
        await keep(redis, 1)
    await clockwork(redis).look()
    assert len(await runs(redis)) == PAGE + 5


async def test_the_next_slot_is_waited_for(redis: Redis) -> None:
    assert await clockwork(redis).look() >= 1
    one = await keep(redis, 0)
    until = (one.next_slot - await Schedules(redis).now()) / 1000
    assert abs(await clockwork(redis).look() - until) < 1


async def test_while_redis_is_away_a_worker_waits_and_then_fires(redis: Redis) -> None:
    class Away(Schedules):
        looked = 0

        async def due(self, start: int = 0) -> Any:
            self.looked += 1
            if self.looked == 1:
                raise StorageUnavailable("Redis does not answer")
            return await super().due(start)

    await keep(redis, 1)
    async with asyncio.timeout(10), redis.pubsub() as channel:
        await channel.psubscribe("run:*:events")
        running = asyncio.create_task(
            Clockwork(Away(redis), Transitions(redis), {}, look_seconds=0.01).run()
        )
        while (message := await channel.get_message(timeout=5)) and message["type"] != "pmessage":
            pass
        running.cancel()
    assert len(await runs(redis)) == 1


class Nothing(BaseModel):
    pass


async def test_a_worker_fires_and_carries_the_run(redis: Redis, valkey_url: str) -> None:
    async def echo(ctx: RunContext, given: Nothing) -> Nothing:
        return given

    one = await keep(redis, 1)
    async with (
        LocalFleet(valkey_url, [Workflow("echo", 1, "", Nothing, Nothing, echo)]) as fleet,
        redis.pubsub() as channel,
    ):
        await channel.psubscribe("run:*:events")
        fleet.worker()
        async with asyncio.timeout(10):
            while not (fired := await Schedules(redis).get(one.schedule_id, "default")).last_run:
                await channel.get_message(timeout=0.2)
        assert (await fleet.ended(fired.last_run)).status is Status.COMPLETED
