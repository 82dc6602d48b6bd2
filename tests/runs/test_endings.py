"""What ends a run from outside, and what brings it back: cancel, timeout, crashes of a suspect, retry."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from posthouse.errors import Conflict, NotFound, OwnershipLost, QueueFull
from posthouse.events.types import (
    Draft,
    MessageCompleted,
    RunCompleted,
    RunCreated,
    RunWaiting,
    ToolInDoubt,
)
from posthouse.ids import new_run_id
from posthouse.journal.model import Wait
from posthouse.journal.store import JournalStore, Record
from posthouse.runs.model import Status
from posthouse.runs.ownership import Claimed, Lease
from posthouse.runs.transitions import Acceptance, Admission, Ending, Transitions
from posthouse.storage import keys

READABLE = [("echo", 1)]
LEASE = 60_000
DONE = Ending(Status.COMPLETED, Draft(event=RunCompleted()), "{}")
FAILED = Ending(Status.FAILED, Draft(event=RunCompleted()), "", '{"code":"fatal"}')
SAID = Draft(event=MessageCompleted(text="hi", length=2))


def acceptance(**changes: Any) -> Acceptance:
    created = Draft(event=RunCreated(workflow="echo", version=1))
    plain = Acceptance(new_run_id(), "default", "echo", 1, "{}", "{}", created, 60_000)
    return replace(plain, **changes)


async def claim_one(transitions: Transitions, claim_id: str = "c1") -> Claimed:
    [claimed] = await transitions.claim("w1", claim_id, LEASE, 10, READABLE)
    return claimed


async def types_of(redis: Redis, run_id: str) -> list[str]:
    return [fields[b"type"].decode() for _, fields in await redis.xrange(keys.events(run_id))]


async def field(redis: Redis, run_id: str, name: str) -> str:
    return (await redis.hget(keys.run(run_id), name) or b"").decode()


async def moment(redis: Redis) -> int:
    """Now, by its clock, in milliseconds."""
    seconds, micros = await redis.time()
    return seconds * 1000 + micros // 1000


async def sweep_all(transitions: Transitions, redis: Redis) -> Any:
    for run_id in await redis.zrange(keys.DUE, 0, -1):
        await redis.zadd(keys.DUE, {run_id: 1})
    seconds, _ = await redis.time()
    await redis.hset(keys.SWEEP, mapping={"last": (seconds + 5) * 1000, "quiet_until": 0})
    return await transitions.sweep(LEASE, may_end_leases=True, readable=READABLE)


async def test_a_pending_run_is_cancelled_and_never_taken(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(run := acceptance())
    assert await transitions.cancel(run.run_id, "default") is True
    assert await transitions.cancel(run.run_id, "default") is False
    assert await transitions.claim("w", "c", LEASE, 10, READABLE) == []
    assert await types_of(redis, run.run_id) == ["run.created", "run.cancelled"]
    assert await redis.zscore(keys.index("default", "cancelled"), run.run_id) == 0
    assert await redis.zscore(keys.index("default", "pending"), run.run_id) is None
    assert not await redis.keys("arq:*")


async def test_a_running_run_is_cancelled_at_once_and_its_worker_is_told(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(acceptance())
    run = await claim_one(transitions)
    async with redis.pubsub() as channel:
        await channel.subscribe(keys.lost("w1"))
        await channel.get_message(timeout=5)
        await transitions.cancel(run.run_id, "default")
        message = await channel.get_message(ignore_subscribe_messages=True, timeout=5)
    assert message is not None
    assert message["data"].decode() == f"{run.run_id} {run.fence}"
    with pytest.raises(OwnershipLost):
        await journal.commit(run, run.seq, Record("a", b'{"result":1}'))
    with pytest.raises(OwnershipLost):
        await transitions.finish(run, run.seq, DONE)
    assert await transitions.heartbeat("w1", LEASE, {}, [Lease(run.run_id, run.fence, run.seq)])
    assert (await types_of(redis, run.run_id))[-1] == "run.cancelled"


async def test_whoever_reaches_redis_first_wins(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(acceptance())
    run = await claim_one(transitions)
    await transitions.finish(run, run.seq, DONE)
    with pytest.raises(Conflict, match="completed"):
        await transitions.cancel(run.run_id, "default")
    with pytest.raises(NotFound):
        await transitions.cancel(run.run_id, "another")
    with pytest.raises(NotFound):
        await transitions.cancel(new_run_id(), "default")


async def test_cancelling_says_which_effects_are_in_doubt(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(acceptance())
    run = await claim_one(transitions)
    doubt = Draft(
        event=ToolInDoubt(tool="send", call_id="c"), agent="clerk", step="clerk/turn:1/tool:c"
    )
    await journal.start(run, run.seq, steps=[doubt.step], intents=[doubt])
    assert (await journal.load(run.run_id)).intents == {doubt.step}
    await transitions.cancel(run.run_id, "default")
    [entry] = [
        f for _, f in await redis.xrange(keys.events(run.run_id)) if f[b"type"] == b"tool.in_doubt"
    ]
    assert (entry[b"agent"], entry[b"step"]) == (b"clerk", doubt.step.encode())
    assert orjson.loads(entry[b"data"]) == {"tool": "send", "call_id": "c"}


async def test_a_committed_effect_is_in_doubt_no_more(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(acceptance())
    run = await claim_one(transitions)
    doubt = Draft(event=ToolInDoubt(tool="send", call_id="c"), step="s")
    await journal.start(run, run.seq, steps=["s"], intents=[doubt])
    await journal.commit(run, run.seq, Record("s", b'{"result":1}'))
    assert (await journal.load(run.run_id)).intents == frozenset()
    await transitions.cancel(run.run_id, "default")
    assert "tool.in_doubt" not in await types_of(redis, run.run_id)


async def test_a_retry_keeps_what_is_done_and_sets_aside_what_is_named(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(acceptance())
    run = await claim_one(transitions)
    for step in "ab":
        await journal.commit(run, run.seq, Record(step, b'{"result":"%s"}' % step.encode()))
    await transitions.finish(run, run.seq, FAILED)
    seen = int(await field(redis, run.run_id, "seq"))
    for _ in range(2):
        await transitions.retry(run.run_id, "default", seen, ["b"])
    assert await field(redis, run.run_id, "status") == "pending"
    assert await redis.hkeys(keys.journal(run.run_id)) == [b"a"]
    assert await redis.hkeys(keys.archive(run.run_id)) == [b"1/b"]
    for key in (keys.run, keys.journal, keys.events, keys.archive):
        assert await redis.pttl(key(run.run_id)) == -1
    again = await claim_one(transitions, "c2")
    assert (again.run_id, again.epoch, again.reason) == (run.run_id, 2, "retry")
    await transitions.finish(again, again.seq, DONE)
    kinds = await types_of(redis, run.run_id)
    assert kinds.count("run.retried") == 1
    with pytest.raises(Conflict, match="completed"):
        await transitions.retry(run.run_id, "default", again.seq, [])
    assert await redis.pttl(keys.archive(run.run_id)) > 0


async def test_only_an_ended_root_is_retried(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(acceptance())
    run = await claim_one(transitions)
    with pytest.raises(Conflict, match="has not ended"):
        await transitions.retry(run.run_id, "default", run.seq, [])
    await transitions.finish(run, run.seq, FAILED)
    with pytest.raises(Conflict, match="changed"):
        await transitions.retry(run.run_id, "default", run.seq, [])
    with pytest.raises(NotFound):
        await transitions.retry(run.run_id, "another", run.seq, [])


async def test_a_suspect_that_ends_its_third_process_is_dead(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(accepted := acceptance())
    for crashes in (1, 2):
        run = await claim_one(transitions, f"c{crashes}")
        assert not run.suspect
        assert await transitions.crash(run) is False
        assert await transitions.crash(run) is False
        assert await field(redis, run.run_id, "crashes") == str(crashes)
    run = await claim_one(transitions, "c3")
    assert run.suspect
    assert await transitions.crash(run) is True
    assert await field(redis, run.run_id, "status") == "failed"
    assert orjson.loads(await field(redis, run.run_id, "error"))["code"] == "poisoned"
    assert await redis.zrange(keys.index("default", "dead"), 0, -1) == [run.run_id.encode()]
    seen = int(await field(redis, run.run_id, "seq"))
    await transitions.retry(accepted.run_id, "default", seen, [])
    assert await redis.zcard(keys.index("default", "dead")) == 0
    assert not (await claim_one(transitions, "c4")).suspect


async def test_a_step_clears_a_suspect(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(acceptance())
    for number in range(6):
        run = await claim_one(transitions, f"c{number}")
        assert run.crashes <= 2
        if number % 2:
            await journal.commit(run, run.seq, Record(f"s{number}", b'{"result":1}'))
        assert await transitions.crash(run) is False


async def test_one_that_takes_every_worker_along_has_an_end(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(run := acceptance())
    for number in range(10):
        claimed = await claim_one(transitions, f"c{number}")
        if claimed.suspect:
            await transitions.isolate(claimed)
        await lose(transitions, redis, claimed)
    assert orjson.loads(await field(redis, run.run_id, "error"))["code"] == "poisoned"


async def lose(transitions: Transitions, redis: Redis, run: Claimed) -> None:
    """Whoever owns the run beats once more and is not heard of again."""
    await transitions.heartbeat("w1", LEASE, {}, [Lease(run.run_id, run.fence, run.seq)])
    await redis.hset(keys.run(run.run_id), "lease", 1)
    await sweep_all(transitions, redis)


async def test_a_suspect_that_waits_for_its_process_is_not_to_blame(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(run := acceptance())
    for number in range(12):
        await lose(transitions, redis, await claim_one(transitions, f"c{number}"))
    assert await field(redis, run.run_id, "crashes") == "2"
    isolated = await claim_one(transitions, "c12")
    await transitions.isolate(isolated)
    await lose(transitions, redis, isolated)
    await lose(transitions, redis, await claim_one(transitions, "c13"))
    assert await field(redis, run.run_id, "crashes") == "3"


async def overdue(redis: Redis, run_id: str) -> None:
    await redis.hset(keys.run(run_id), "deadline", 1)


async def timed_out(redis: Redis, run_id: str) -> bool:
    error = await field(redis, run_id, "error")
    return bool(error) and orjson.loads(error)["code"] == "timeout"


async def test_a_run_past_its_timeout_fails_at_the_next_beat(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(acceptance(timeout_ms=5_000))
    run = await claim_one(transitions)
    deadline = int(await field(redis, run.run_id, "deadline"))
    assert deadline == run.claimed_at + 5_000
    assert await redis.zscore(keys.DUE, run.run_id) == deadline
    await overdue(redis, run.run_id)
    lease = Lease(run.run_id, run.fence, run.seq)
    assert await transitions.heartbeat("w1", LEASE, {}, [lease]) == [lease]
    assert await timed_out(redis, run.run_id)
    assert (await types_of(redis, run.run_id))[-1] == "run.failed"


@pytest.mark.parametrize("place", ["owned", "parked", "queued"])
async def test_the_sweep_ends_what_is_past_its_timeout(redis: Redis, place: str) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(acceptance(timeout_ms=5_000))
    run = await claim_one(transitions)
    if place == "parked":
        event = Draft(event=RunWaiting(wait_reason="timer"))
        waits = [Wait("nap", "timer", 60_000, '{"result":null}')]
        await journal.park(run, run.seq, status="running", reason="timer", event=event, waits=waits)
        assert await redis.zscore(keys.DUE, run.run_id) == run.claimed_at + 5_000
    elif place == "queued":
        await transitions.release(run, run.seq)
    await overdue(redis, run.run_id)
    await sweep_all(transitions, redis)
    assert await timed_out(redis, run.run_id)
    assert not await redis.keys("arq:*")


async def test_a_sweep_tells_once_of_the_ends_that_nobody_else_counts(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(acceptance(timeout_ms=5_000))
    late = await claim_one(transitions)
    await overdue(redis, late.run_id)
    await transitions.heartbeat("w1", LEASE, {}, [Lease(late.run_id, late.fence, late.seq)])
    await transitions.accept(acceptance())
    for crash in range(3):
        await transitions.crash(await claim_one(transitions, f"c2{crash}"))
    await transitions.accept(asked := acceptance())
    await transitions.cancel(asked.run_id, "default")  # whoever asked counts it
    swept = await sweep_all(transitions, redis)
    assert (swept.timed_out, swept.poisoned, swept.cancelled) == (1, 1, 0)
    again = await sweep_all(transitions, redis)
    assert (again.timed_out, again.poisoned, again.cancelled) == (0, 0, 0)


async def test_a_run_for_later_waits_without_a_queue_entry(redis: Redis) -> None:
    transitions = Transitions(redis)
    seconds, _ = await redis.time()
    later = (seconds + 100) * 1000
    await transitions.accept(run := acceptance(not_before_ms=later, band=3))
    assert await redis.zscore(keys.DUE, run.run_id) == later
    await sweep_all(transitions, redis)
    assert await redis.zcard(keys.QUEUE) == 0
    assert await redis.zscore(keys.DUE, run.run_id) == later
    await redis.hset(keys.run(run.run_id), "not_before", 1)
    await sweep_all(transitions, redis)
    [(_, score)] = await redis.zrange(keys.QUEUE, 0, -1, withscores=True)
    assert 3e11 < score < 4e11
    assert (await claim_one(transitions)).reason == "accepted"


async def test_a_higher_priority_begins_first_and_a_begun_run_goes_before_all(redis: Redis) -> None:
    transitions = Transitions(redis)
    runs = [acceptance(band=band) for band in (9, 5, 1)]
    for run in runs:
        await transitions.accept(run)
    first = await transitions.claim("w", "c1", LEASE, 1, READABLE)
    assert first[0].run_id == runs[2].run_id
    await transitions.release(first[0], first[0].seq)
    rest = await transitions.claim("w", "c2", LEASE, 3, READABLE)
    assert [run.run_id for run in rest] == [runs[2].run_id, runs[1].run_id, runs[0].run_id]


async def test_a_queue_entry_that_was_lost_comes_back_in_its_band(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(acceptance(band=7))
    await redis.delete(keys.QUEUE)
    await sweep_all(transitions, redis)
    [(_, score)] = await redis.zrange(keys.QUEUE, 0, -1, withscores=True)
    assert 7e11 < score < 8e11


async def test_a_full_queue_refuses_and_says_when_to_come_again(redis: Redis) -> None:
    transitions = Transitions(redis, admission=Admission(depth=2))
    keyed = acceptance(idempotency_key="k", fingerprint="f")
    await transitions.accept(keyed)
    await transitions.accept(acceptance())
    with pytest.raises(QueueFull) as refused:
        await transitions.accept(acceptance())
    assert refused.value.retry_after == 30
    again = await transitions.accept(replace(keyed, run_id=new_run_id()))
    assert again.replayed
    run, _ = await transitions.claim("w1", "c1", LEASE, 10, READABLE)
    await transitions.accept(acceptance())
    await transitions.accept(acceptance())
    await transitions.release(run, run.seq)
    with pytest.raises(QueueFull) as refused:
        await transitions.accept(acceptance())
    assert 1 <= refused.value.retry_after <= 300
    assert await redis.zcard(keys.index("default")) == 4


async def test_runs_that_wait_too_long_and_a_full_redis_refuse_too(redis: Redis) -> None:
    transitions = Transitions(redis, admission=Admission(age_ms=1000, memory_percent=90))
    await transitions.accept(run := acceptance())
    await redis.hset(keys.run(run.run_id), "updated_at", 1)
    with pytest.raises(QueueFull, match="too long"):
        await transitions.accept(acceptance())
    await transitions.cancel(run.run_id, "default")
    await redis.hset(keys.SWEEP, mapping={"memory": 95, "memory_at": await moment(redis)})
    with pytest.raises(QueueFull, match="nearly full"):
        await transitions.accept(acceptance())
    await sweep_all(transitions, redis)
    assert int(await redis.hget(keys.SWEEP, "memory") or 1) == 0
    await transitions.accept(acceptance())


async def test_what_an_old_sweep_found_neither_sheds_nor_lets_in(valkey: Any) -> None:
    async with Redis.from_url(valkey.url) as redis:
        transitions = Transitions(redis, admission=Admission(memory_percent=60))
        used = (await redis.info("memory"))["used_memory"]
        long_ago = await moment(redis) - 11_000
        await redis.hset(keys.SWEEP, mapping={"memory": 95, "memory_at": long_ago})
        await transitions.accept(acceptance())
        assert await redis.hget(keys.SWEEP, "memory") == b"0"
        # What was measured a moment ago is not measured again.
        await redis.config_set("maxmemory", int(used * 1.5))
        await transitions.accept(acceptance())
        await redis.hset(keys.SWEEP, "memory_at", long_ago)
        with pytest.raises(QueueFull, match="nearly full"):
            await transitions.accept(acceptance())


async def test_a_retry_is_refused_as_a_new_run_is(redis: Redis) -> None:
    transitions = Transitions(redis, admission=Admission(depth=1))
    await transitions.accept(acceptance())
    run = await claim_one(transitions)
    await transitions.finish(run, run.seq, FAILED)
    await transitions.accept(waiting := acceptance())
    seen = int(await field(redis, run.run_id, "seq"))
    before = await redis.hgetall(keys.run(run.run_id))
    with pytest.raises(QueueFull) as refused:
        await transitions.retry(run.run_id, "default", seen, [])
    assert refused.value.retry_after == 30
    assert await redis.hgetall(keys.run(run.run_id)) == before
    assert await redis.zcard(keys.QUEUE) == 1
    await transitions.cancel(waiting.run_id, "default")
    await transitions.retry(run.run_id, "default", seen, [])
    # Once more, as when the answer was lost: the queue is full with it.
    await transitions.retry(run.run_id, "default", seen, [])


async def test_runs_for_later_have_a_bound_of_their_own(redis: Redis) -> None:
    transitions = Transitions(redis, admission=Admission(depth=2))
    now = await moment(redis)
    in_a_minute, in_an_hour = now + 60_000, now + 3_600_000
    await transitions.accept(first := acceptance(not_before_ms=in_a_minute))
    await transitions.accept(second := acceptance(not_before_ms=in_an_hour))
    with pytest.raises(QueueFull, match="wait for their time") as refused:
        await transitions.accept(acceptance(not_before_ms=in_an_hour))
    assert 50 <= refused.value.retry_after <= 60
    await transitions.accept(acceptance())
    await transitions.cancel(second.run_id, "default")
    assert await redis.zrange(keys.LATER, 0, -1) == [first.run_id.encode()]
    await transitions.accept(acceptance(not_before_ms=in_an_hour))
    await redis.hset(keys.run(first.run_id), "not_before", 1)
    await sweep_all(transitions, redis)
    assert (await redis.zcard(keys.QUEUE), await redis.zcard(keys.LATER)) == (2, 1)


async def test_a_run_whose_time_is_over_is_not_tried_again(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(acceptance())
    run = await claim_one(transitions)
    await transitions.finish(run, run.seq, FAILED)
    await redis.hset(keys.run(run.run_id), "ended_at", 1)
    seen = int(await field(redis, run.run_id, "seq"))
    with pytest.raises(NotFound):
        await transitions.retry(run.run_id, "default", seen, [])


async def test_a_timeout_says_too_which_effects_are_in_doubt(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(acceptance(timeout_ms=5_000))
    run = await claim_one(transitions)
    doubt = Draft(event=ToolInDoubt(tool="send", call_id="c"), step="s")
    await journal.start(run, run.seq, steps=["s"], intents=[doubt])
    await overdue(redis, run.run_id)
    await sweep_all(transitions, redis)
    assert (await types_of(redis, run.run_id))[-2:] == ["tool.in_doubt", "run.failed"]


async def test_who_comes_when_the_first_waits_too_long_is_told_a_true_time(redis: Redis) -> None:
    transitions = Transitions(redis, admission=Admission(age_ms=1000))
    for _ in range(20):
        await transitions.accept(acceptance())
    run = (await transitions.claim("w1", "c1", LEASE, 1, READABLE))[0]
    first = (await redis.zrange(keys.QUEUE, 0, 0))[0].decode().partition(":")[0]
    await redis.hset(keys.run(first), "updated_at", 1)
    seconds, _ = await redis.time()
    slow = {"queued_since": seconds * 1000 - 9_000, "queued_count": 1, "queued_ms": 0}
    await redis.hset(keys.DRAINED, mapping=slow)
    with pytest.raises(QueueFull) as refused:
        await transitions.accept(acceptance())
    assert 15 <= refused.value.retry_after <= 30
    assert run.run_id != first
    await redis.flushall()  # the next test may take runs in where this one waits too long


async def test_how_fast_runs_are_taken_is_measured_while_some_wait(redis: Redis) -> None:
    transitions = Transitions(redis, admission=Admission(depth=20))

    async def take(limit: int) -> None:
        await transitions.claim("w1", new_run_id(), LEASE, limit, READABLE)

    async def passes(ms: int) -> None:
        """As if it were so much later."""
        since = int(await redis.hget(keys.DRAINED, "queued_since"))
        await redis.hset(keys.DRAINED, "queued_since", since - ms)

    async def measured() -> tuple[int, int]:
        ms, count = await redis.hmget(keys.DRAINED, "queued_ms", "queued_count")
        return int(ms) // 1000, int(count)

    for _ in range(6):
        await transitions.accept(acceptance())
    await take(2)  # by a fleet that had nothing to do: says nothing of its speed
    assert await measured() == (0, 0)
    await passes(2_000)
    await take(1)
    assert await measured() == (2, 1)
    await passes(4_000)
    await take(3)
    assert await measured() == (6, 4)
    # An hour without a queue.
    assert await redis.hget(keys.DRAINED, "queued_since") == b"0"
    await redis.hset(keys.DRAINED, "since", 1)
    for _ in range(20):
        await transitions.accept(acceptance())
    with pytest.raises(QueueFull) as refused:
        await transitions.accept(acceptance())
    assert refused.value.retry_after in (3, 4)  # a tenth of 20, at 4 in 6 seconds
    # Nobody takes any: they wait since the first of them came.
    first = (await redis.zrange(keys.QUEUE, 0, 0))[0].decode().partition(":")[0]
    await redis.hset(keys.run(first), "updated_at", await moment(redis) - 30_000)
    with pytest.raises(QueueFull) as refused:
        await transitions.accept(acceptance())
    assert refused.value.retry_after in (18, 19)
    await redis.flushall()


async def test_a_queue_that_a_cancel_emptied_starts_the_measure_anew(redis: Redis) -> None:
    transitions = Transitions(redis)
    for run in (runs := [acceptance() for _ in range(2)]):
        await transitions.accept(run)
    await transitions.claim("w1", "c1", LEASE, 1, READABLE)
    assert int(await redis.hget(keys.DRAINED, "queued_since")) > 0
    await transitions.cancel(runs[1].run_id, "default")
    assert await transitions.claim("w1", "c2", LEASE, 1, READABLE) == []
    assert await redis.hget(keys.DRAINED, "queued_since") is None
