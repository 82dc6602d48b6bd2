"""Runs whose time has not come: whatever breaks, they begin once, and what waits no more does not count."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from posthouse.events.types import Draft, RunCreated
from posthouse.ids import new_run_id
from posthouse.runs.transitions import Acceptance, Transitions
from posthouse.storage import keys
from posthouse.storage.scripts import Script
from tests.chaos.grove import BreakingScripts

READABLE = [("echo", 1)]
LEASE = 60_000
HOUR = 3_600_000
CREATED = Draft(event=RunCreated(workflow="echo", version=1))


async def moment(redis: Redis) -> int:
    """Now, by its clock, in milliseconds."""
    seconds, micros = await redis.time()
    return seconds * 1000 + micros // 1000


async def later(redis: Redis, ttl_ms: int = 60_000) -> Acceptance:
    when = await moment(redis) + HOUR
    plain = (new_run_id(), "default", "echo", 1, "{}", "{}", CREATED)
    return Acceptance(*plain, ttl_ms=ttl_ms, not_before_ms=when)


async def sweep(transitions: Transitions, *run_ids: str, redis: Redis) -> None:
    """Somebody looks, at these runs too."""
    for run_id in run_ids:
        await redis.zadd(keys.DUE, {run_id: 1})
    swept = await transitions.sweep(LEASE, may_end_leases=False, readable=READABLE)
    assert swept.broken == 0


async def test_a_call_that_breaks_amid_taking_one_in_is_made_again(redis: Redis) -> None:
    transitions = Transitions(redis, scripts := BreakingScripts(redis))
    for number in range(1, 100):
        run = await later(redis)
        scripts.next = (Script.ACCEPT, number)
        try:
            await transitions.accept(run)
        except ResponseError:
            await transitions.accept(run)
        else:
            break
        assert await redis.xlen(keys.events(run.run_id)) == 1
        await redis.hset(keys.run(run.run_id), "not_before", 1)
        await sweep(transitions, run.run_id, redis=redis)
        assert await redis.zrange(keys.LATER, 0, -1) == []
        job = f"{run.run_id}:1"
        assert await redis.zrange(keys.QUEUE, -1, -1) == [job.encode()]
    assert number > 10


async def test_a_cancelled_one_does_not_count_whatever_breaks(redis: Redis) -> None:
    transitions = Transitions(redis, scripts := BreakingScripts(redis))
    for number in range(1, 100):
        run = await later(redis, ttl_ms=1000)
        await transitions.accept(run)
        scripts.next = (Script.CANCEL, number)
        try:
            await transitions.cancel(run.run_id, "default")
        except ResponseError:
            # Nobody makes the call again, and where it has ended its time is over.
            if ended := await redis.hget(keys.run(run.run_id), "status") == b"cancelled":
                await redis.hset(keys.run(run.run_id), "ended_at", 1)
            await sweep(transitions, run.run_id, redis=redis)
            left = await redis.zrange(keys.LATER, 0, -1)
            assert left == ([] if ended else [run.run_id.encode()]), number
            await redis.delete(keys.LATER)
        else:
            break
    assert number > 10


@pytest.mark.parametrize("by", ["begun", "ended", "gone"])
async def test_what_scripts_without_this_list_did_is_found(redis: Redis, by: str) -> None:
    transitions = Transitions(redis)
    await transitions.accept(waiting := await later(redis))
    await transitions.accept(run := await later(redis))
    match by:
        case "begun":
            await redis.hset(keys.run(run.run_id), "dispatch", 1)
        case "ended":
            await redis.hset(keys.run(run.run_id), "status", "completed")
        case _:
            await redis.delete(keys.run(run.run_id))
    await sweep(transitions, redis=redis)
    assert await redis.zcard(keys.LATER) == 2  # not before its time
    await redis.zadd(keys.LATER, {run.run_id: await moment(redis) - 31_000})
    await redis.zadd(keys.LATER, {waiting.run_id: 1})
    await sweep(transitions, redis=redis)
    assert await redis.zrange(keys.LATER, 0, -1) == [waiting.run_id.encode()]
