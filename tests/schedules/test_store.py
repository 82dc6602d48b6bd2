"""Schedules in Redis: kept once, fired once, whatever fails inside a script."""

import dataclasses
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from posthouse.budget.model import Budget, OnExceeded
from posthouse.errors import IdempotencyMismatch, NotFound, StorageUnavailable
from posthouse.ids import new_run_id, new_schedule_id
from posthouse.runs.transitions import Admission, Transitions
from posthouse.schedules.model import SCHEDULE_VERSION, CatchUp, Overlap, Rule, Schedule
from posthouse.schedules.store import Answer, Firing, Schedules
from posthouse.storage import keys
from posthouse.storage.scripts import Script, Scripts, source

RULE = Rule("* * * * *", "UTC")
MINUTE = 60_000


async def schedule(redis: Redis, late: int = 3, **fields: Any) -> Schedule:
    """One that has been due for so many minutes."""
    now = await Schedules(redis).now()
    slot = RULE.next_after(now - (late + 1) * MINUTE)
    whole = {
        "schedule_id": new_schedule_id(), "tenant": "default", "rule": RULE, "workflow": "echo", "version": 2,
        "input": '{"text":"hi"}', "metadata": {"who": "me"}, "ttl_ms": 60_000, "created_at": now, "next_slot": slot,
    } | fields  # fmt: skip
    return Schedule(**whole)


def firing(seen: Schedule, **fields: Any) -> Firing:
    assert seen.next_slot is not None
    slot = seen.next_slot
    return Firing(slot, slot, RULE.next_after(slot), new_run_id(), 2, **fields)


async def runs(redis: Redis) -> int:
    return int(await redis.zcard(keys.index("default")))


async def end(redis: Redis, run_id: str) -> None:
    await Transitions(redis).cancel(run_id, "default")


async def test_what_is_kept_is_what_is_read(redis: Redis) -> None:
    schedules = Schedules(redis)
    wanted = await schedule(
        redis, priority=7, timeout_ms=5, overlap=Overlap.ALLOW, catch_up=CatchUp.ALL,
        budget=Budget(usd=0.5, tokens=9, on_exceeded=OnExceeded.ASK), models={"fast": ("at:m",)},
    )  # fmt: skip
    kept = await schedules.create(wanted)
    assert (kept.schedule_id, kept.replayed) == (wanted.schedule_id, False)
    assert await schedules.get(wanted.schedule_id, "default") == wanted
    assert (await schedules.newest("default", 10, None)).schedules == (wanted,)
    assert (await schedules.due()).schedules == (wanted,)
    for tenant in ("other", ""):
        with pytest.raises(NotFound):
            await schedules.get(wanted.schedule_id, tenant)
        with pytest.raises(NotFound):
            await schedules.delete(wanted.schedule_id, tenant)
    await schedules.delete(wanted.schedule_id, "default")
    with pytest.raises(NotFound):
        await schedules.delete(wanted.schedule_id, "default")
    assert await redis.keys("*") == []


async def test_a_slot_makes_one_run(redis: Redis) -> None:
    schedules = Schedules(redis)
    await schedules.create(wanted := await schedule(redis, priority=9, timeout_ms=5_000))
    first = firing(wanted)
    assert await schedules.fire(wanted, first) == (Answer.FIRED, first.run_id)
    assert await schedules.fire(wanted, first) == (Answer.FIRED, first.run_id)
    assert await schedules.fire(wanted, firing(wanted)) == (Answer.MOVED, "")
    assert await runs(redis) == 1

    record = await redis.hgetall(keys.run(first.run_id))
    assert (record[b"workflow"], record[b"version"], record[b"band"]) == (b"echo", b"2", b"1")
    assert (record[b"input"], record[b"timeout"]) == (b'{"text":"hi"}', b"5000")
    metadata = json.loads(record[b"metadata"])
    assert metadata.keys() == {"who", "schedule_id", "slot"}
    assert metadata["schedule_id"] == wanted.schedule_id

    after = await schedules.get(wanted.schedule_id, "default")
    assert (after.next_slot, after.last_slot) == (first.following, first.slot)
    assert (after.last_run, after.fired, after.skipped) == (first.run_id, 1, 0)


async def test_its_run_has_its_budget_and_models_from_the_first_moment(redis: Redis) -> None:
    schedules = Schedules(redis)
    limits = Budget(tokens=9, on_exceeded=OnExceeded.FAIL)
    await schedules.create(
        wanted := await schedule(redis, budget=limits, models={"fast": ("at:m",)})
    )
    await schedules.fire(wanted, first := firing(wanted))
    record = await redis.hgetall(keys.run(first.run_id))
    assert (record[b"models"], record[b"budget"]) == (b'{"fast":["at:m"]}', b"1")
    stored = await redis.hgetall(keys.budget(first.run_id))
    assert stored == {b"limit_tokens": b"9", b"on_exceeded": b"fail"}


async def test_one_of_the_first_form_is_read_and_fires(redis: Redis) -> None:
    """Only one that needs the second form has it: who reads the first alone goes on firing the others."""
    schedules = Schedules(redis)
    await schedules.create(limited := await schedule(redis, budget=Budget(tokens=9)))
    await schedules.create(wanted := await schedule(redis))
    forms = [await redis.hget(keys.schedule(one.schedule_id), "v") for one in (limited, wanted)]
    assert forms == [b"2", b"1"]
    await redis.hdel(keys.schedule(wanted.schedule_id), "budget", "models")
    assert await schedules.get(wanted.schedule_id, "default") == wanted
    first = firing(wanted)
    assert (await schedules.fire(wanted, first))[0] is Answer.FIRED
    record = await redis.hgetall(keys.run(first.run_id))
    assert (record[b"models"], record[b"budget"]) == (b"", b"")
    assert await redis.exists(keys.budget(first.run_id)) == 0


async def test_a_slot_is_never_early(redis: Redis) -> None:
    schedules = Schedules(redis)
    await schedules.create(wanted := await schedule(redis, late=-1))
    assert await schedules.fire(wanted, firing(wanted)) == (Answer.EARLY, "")
    page = await schedules.due()
    assert (page.schedules, page.upcoming) == ((), wanted.next_slot)
    assert await runs(redis) == 0


async def test_while_the_last_run_lives_a_slot_is_skipped(redis: Redis) -> None:
    schedules = Schedules(redis)
    await schedules.create(wanted := await schedule(redis))
    await schedules.fire(wanted, first := firing(wanted))
    wanted = await schedules.get(wanted.schedule_id, "default")
    skipped = firing(wanted)
    for _ in range(2):
        assert await schedules.fire(wanted, skipped) == (Answer.SKIPPED, first.run_id)
    wanted = await schedules.get(wanted.schedule_id, "default")
    assert (wanted.fired, wanted.skipped, wanted.last_run) == (1, 1, first.run_id)

    await end(redis, first.run_id)
    assert (await schedules.fire(wanted, firing(wanted)))[0] is Answer.FIRED
    assert await runs(redis) == 2


async def test_or_allowed_or_the_other_is_to_be_cancelled_first(redis: Redis) -> None:
    schedules = Schedules(redis)
    for overlap, answer in ((Overlap.ALLOW, Answer.FIRED), (Overlap.CANCEL_OTHER, Answer.LIVE)):
        await schedules.create(wanted := await schedule(redis, overlap=overlap))
        await schedules.fire(wanted, first := firing(wanted))
        wanted = await schedules.get(wanted.schedule_id, "default")
        second = firing(wanted)
        assert (await schedules.fire(wanted, second))[0] is answer
        if answer is Answer.LIVE:
            await end(redis, first.run_id)
        assert await schedules.fire(wanted, second) == (Answer.FIRED, second.run_id)


async def test_a_full_queue_loses_no_slot(redis: Redis) -> None:
    full, schedules = Schedules(redis, admission=Admission(depth=0)), Schedules(redis)
    await schedules.create(wanted := await schedule(redis))
    first = firing(wanted)
    assert (await full.fire(wanted, first))[0] is Answer.FULL
    pinned = await schedules.get(wanted.schedule_id, "default")
    assert pinned.pin is not None
    assert (pinned.pin.slot, pinned.pin.run_id) == (first.slot, first.run_id)
    assert dataclasses.replace(pinned, pin=None) == wanted

    later = dataclasses.replace(firing(wanted), slot=first.following)
    assert await schedules.fire(wanted, later) == (Answer.MOVED, "")
    passing = dataclasses.replace(firing(wanted), slot=None)
    assert await schedules.fire(wanted, passing) == (Answer.MOVED, "")
    assert await schedules.fire(wanted, firing(wanted)) == (Answer.FIRED, first.run_id)
    assert (await schedules.get(wanted.schedule_id, "default")).pin is None


async def test_what_is_passed_over_makes_no_run(redis: Redis) -> None:
    schedules = Schedules(redis)
    await schedules.create(wanted := await schedule(redis))
    passing = dataclasses.replace(firing(wanted), slot=None)
    for _ in range(2):
        assert await schedules.fire(wanted, passing) == (Answer.PASSED, "")
    assert await runs(redis) == 0
    assert (await schedules.get(wanted.schedule_id, "default")).next_slot == passing.following


async def test_after_the_last_slot_there_is_no_timer(redis: Redis) -> None:
    schedules = Schedules(redis)
    await schedules.create(wanted := await schedule(redis))
    last = dataclasses.replace(firing(wanted), following=None)
    assert (await schedules.fire(wanted, last))[0] is Answer.FIRED
    assert (await schedules.get(wanted.schedule_id, "default")).next_slot is None
    assert await redis.zcard(keys.SCHEDULES) == 0


async def test_one_that_was_deleted_fires_no_more(redis: Redis) -> None:
    schedules = Schedules(redis)
    await schedules.create(wanted := await schedule(redis))
    await schedules.delete(wanted.schedule_id, "default")
    assert await schedules.fire(wanted, firing(wanted)) == (Answer.GONE, "")
    await redis.zadd(keys.SCHEDULES, {wanted.schedule_id: 1})
    assert (await schedules.due()).schedules == ()
    assert await redis.zcard(keys.SCHEDULES) == 0


async def test_the_same_key_keeps_one(redis: Redis) -> None:
    schedules = Schedules(redis)
    first, second = await schedule(redis), await schedule(redis)
    kept = await schedules.create(first, "k", "f")
    assert (await schedules.create(first, "k", "f")) == kept
    again = await schedules.create(second, "k", "f")
    assert again == dataclasses.replace(kept, replayed=True)
    with pytest.raises(IdempotencyMismatch):
        await schedules.create(second, "k", "other")
    assert await redis.zcard(keys.SCHEDULES) == 1


async def test_what_cannot_be_read_stands_in_nobodys_way(redis: Redis) -> None:
    schedules = Schedules(redis)
    await schedules.create(newer := await schedule(redis, late=5))
    await schedules.create(odd := await schedule(redis, late=4))
    await schedules.create(sound := await schedule(redis))
    await redis.hset(keys.schedule(newer.schedule_id), "v", SCHEDULE_VERSION + 1)
    await redis.hset(keys.schedule(odd.schedule_id), "overlap", "sometimes")
    page = await schedules.due()
    assert (page.schedules, page.passed) == ((sound,), 2)
    assert (await schedules.newest("default", 10, None)).schedules == (sound,)
    with pytest.raises(StorageUnavailable):
        await schedules.get(newer.schedule_id, "default")


class FaultyScripts(Scripts):
    """Fails the n-th call to Redis inside one script, once."""

    def __init__(self, redis: Redis, script: Script, call: int) -> None:
        super().__init__(redis)
        self._client, self._script, self._call, self.struck = redis, script, call, False

    async def call(self, script: Script, *arguments: str | int | bytes) -> list[Any]:
        if script is not self._script or self.struck:
            return await super().call(script, *arguments)
        self.struck = True
        flags, _, body = source(script).partition("\n")
        text = f"""{flags}
local real, calls = redis, 0
local redis = {{}}
local function planted() calls = calls + 1; return calls == {self._call} end
function redis.call(...)
  if planted() then error('planted') end
  return real.call(...)
end
function redis.pcall(...)
  if planted() then return {{ err = 'planted' }} end
  return real.pcall(...)
end
{body}"""
        return list(await self._client.eval(text, 0, *arguments))


async def again(call: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await call()
    except (ResponseError, NotFound):
        return await call()


# How many calls each makes at most, and some more.
CALLS = {Script.SCHEDULE: 12, Script.FIRE: 28, Script.UNSCHEDULE: 8}


@pytest.mark.parametrize("script", CALLS)
async def test_a_failed_call_inside_a_script_makes_no_second_run(
    script: Script, redis: Redis
) -> None:
    """Also when somebody else, who knows nothing of the first try, makes the second."""
    for call in range(1, CALLS[script]):
        for by_another in (False, True):
            await redis.flushall()
            faulty = FaultyScripts(redis, script, call)
            where = f"{script}, call {call}, by another: {by_another}"
            await a_life(redis, Schedules(redis, faulty), by_another=by_another, where=where)
            assert faulty.struck


async def a_life(redis: Redis, schedules: Schedules, *, by_another: bool, where: str) -> None:
    """Kept, fired once, deleted; what fails is done again."""
    wanted, other = await schedule(redis), await schedule(redis)
    other = dataclasses.replace(other, next_slot=wanted.next_slot)
    tries = iter([wanted, other if by_another else wanted])
    kept = await again(lambda: schedules.create(next(tries), "k", "f"))
    assert await redis.zcard(keys.SCHEDULES) == 1, where
    assert await redis.zcard(keys.schedules_of("default")) == 1, where
    seen = await schedules.get(kept.schedule_id, "default")
    first, second = firing(seen), firing(seen)
    firings = iter([first, second if by_another else first])
    answer, _ = await again(lambda: schedules.fire(seen, next(firings)))
    assert answer is Answer.FIRED or (by_another and answer is Answer.MOVED), where
    assert await runs(redis) == 1, where
    after = await schedules.get(kept.schedule_id, "default")
    assert (after.fired, after.next_slot) == (1, first.following), where
    assert await redis.zscore(keys.SCHEDULES, kept.schedule_id) == after.next_slot, where
    types = [fields[b"type"] for _, fields in await redis.xrange(keys.events(after.last_run))]
    assert types == [b"run.created"], where
    with suppress(NotFound):
        await again(lambda: schedules.delete(kept.schedule_id, "default"))
    gone = (keys.schedule(kept.schedule_id), keys.SCHEDULES, keys.schedules_of("default"))
    assert await redis.exists(*gone) == 0, where


async def test_a_full_redis_refuses_schedules_and_lets_them_be_deleted(valkey: Any) -> None:
    async with Redis.from_url(valkey.url) as redis:
        schedules = Schedules(redis)
        await schedules.create(wanted := await schedule(redis))
        await redis.config_set("maxmemory", "1")
        for refused in (
            schedules.create(await schedule(redis)),
            schedules.fire(wanted, firing(wanted)),
        ):
            with pytest.raises(StorageUnavailable):
                await refused
        await schedules.delete(wanted.schedule_id, "default")
