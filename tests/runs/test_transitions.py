"""The transitions of runs on a real server: who owns, what a repeat gets, what is left behind."""

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from posthouse.errors import Conflict, IdempotencyMismatch, NotFound, OwnershipLost
from posthouse.events.types import Draft, MessageCompleted, RunCompleted, RunCreated, RunWaiting
from posthouse.ids import new_run_id
from posthouse.journal.model import Prompt, Usage, Wait
from posthouse.journal.store import JournalStore, Record
from posthouse.runs.model import Status
from posthouse.runs.ownership import Claimed, Lease
from posthouse.runs.records import Records
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys

READABLE = [("echo", 1)]
LEASE = 60_000
DONE = Ending(Status.COMPLETED, Draft(event=RunCompleted()), '{"said":"hi"}')


def acceptance(**changes: Any) -> Acceptance:
    plain = Acceptance(
        run_id=new_run_id(),
        tenant="default",
        workflow="echo",
        version=1,
        input='{"say":"hi"}',
        metadata="{}",
        created=Draft(event=RunCreated(workflow="echo", version=1)),
        ttl_ms=60_000,
    )
    return replace(plain, **changes)


async def claim_one(
    transitions: Transitions, *, lease_ms: int = LEASE, claim_id: str = "c1"
) -> Claimed:
    [claimed] = await transitions.claim("w1", claim_id, lease_ms, 10, READABLE)
    return claimed


async def events_of(redis: Redis, run_id: str) -> list[tuple[int, str]]:
    entries = await redis.xrange(keys.events(run_id))
    return [(int(entry.split(b"-")[0]), fields[b"type"].decode()) for entry, fields in entries]


async def arq_keys(redis: Redis) -> list[bytes]:
    return list(await redis.keys("arq:*"))


async def lapse(redis: Redis, run_id: str) -> None:
    """Lets the run's lease end now, in a fleet that has swept all along."""
    await redis.hset(keys.run(run_id), "lease", 1)
    await redis.zadd(keys.DUE, {run_id: 1})


async def sweep(transitions: Transitions, redis: Redis, **options: Any) -> Any:
    seconds, _ = await redis.time()
    await redis.hset(keys.SWEEP, mapping={"last": (seconds + 5) * 1000, "quiet_until": 0})
    options = {"may_end_leases": True, "readable": READABLE, **options}
    return await transitions.sweep(LEASE, **options)


async def test_the_road_of_a_run(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    accepted = await transitions.accept(run := acceptance())
    assert accepted.run_id == run.run_id
    assert orjson.loads(await redis.get(f"arq:job:{run.run_id}:1"))["a"] == [run.run_id, 1]
    assert await redis.zscore("index:default:pending", run.run_id) == 0

    claimed = await claim_one(transitions)
    assert (claimed.run_id, claimed.epoch, claimed.input) == (run.run_id, 1, b'{"say":"hi"}')
    assert await arq_keys(redis) == []
    assert await redis.zscore("index:default:running", run.run_id) == 0

    said = Draft(event=MessageCompleted(text="hi", length=2), agent="a", step="a/turn:1")
    told = await journal.commit(
        claimed,
        claimed.seq,
        Record("a/turn:1", b'{"result":"hi"}', usage=Usage(input_tokens=3), events=(said,)),
    )
    assert told.seq == 3
    await transitions.finish(claimed, told.seq, DONE)
    assert await events_of(redis, run.run_id) == [
        (1, "run.created"),
        (2, "run.started"),
        (3, "message.completed"),
        (4, "run.completed"),
    ]
    record = await redis.hgetall(keys.run(run.run_id))
    assert record[b"status"] == b"completed"
    assert record[b"input_tokens"] == b"3"
    assert 0 < await redis.pttl(keys.journal(run.run_id)) <= 120_000
    assert await redis.zscore("index:default:running", run.run_id) is None
    assert await arq_keys(redis) == []


async def test_published_envelopes_are_one_line_each_and_agree_with_the_log(redis: Redis) -> None:
    transitions = Transitions(redis)
    run = acceptance()
    async with redis.pubsub() as channel:
        await channel.subscribe(keys.events(run.run_id))
        await channel.get_message(timeout=5)
        await transitions.accept(run)
        message = await channel.get_message(ignore_subscribe_messages=True, timeout=5)
    assert message is not None
    envelope = orjson.loads(message["data"])
    [(entry, fields)] = await redis.xrange(keys.events(run.run_id))
    assert list(envelope) == ["seq", "type", "run_id", "epoch", "time", "data"]
    assert envelope["time"] == int(fields[b"time"])
    assert entry == b"1-0"
    assert envelope["data"] == orjson.loads(fields[b"data"])


@pytest.mark.guarantee("G5")
async def test_one_idempotency_key_starts_one_run_however_many_ask_at_once(redis: Redis) -> None:
    transitions = Transitions(redis)
    asked = [acceptance(idempotency_key="k", fingerprint="f") for _ in range(40)]
    answers = await asyncio.gather(*(transitions.accept(run) for run in asked))
    assert len({answer.run_id for answer in answers}) == 1
    assert len({answer.created_at for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert await redis.zcard(keys.QUEUE) == 1
    with pytest.raises(IdempotencyMismatch):
        await transitions.accept(acceptance(idempotency_key="k", fingerprint="other"))


async def test_accepting_the_same_run_again_changes_nothing(redis: Redis) -> None:
    transitions = Transitions(redis)
    run = acceptance()
    first = await transitions.accept(run)
    assert await transitions.accept(run) == first
    assert await redis.zcard(keys.QUEUE) == 1
    assert len(await events_of(redis, run.run_id)) == 1


async def test_a_claim_whose_reply_was_lost_gives_the_same_runs_again(redis: Redis) -> None:
    transitions = Transitions(redis)
    for _ in range(3):
        await transitions.accept(acceptance())
    first = await transitions.claim("w1", "c1", LEASE, 10, READABLE)
    again = await transitions.claim("w1", "c1", LEASE, 10, READABLE)
    assert [run.fence for run in again] == [run.fence for run in first]
    assert {run.run_id for run in again} == {run.run_id for run in first}
    assert await transitions.claim("w2", "c2", LEASE, 10, READABLE) == []


async def test_what_the_queue_should_not_hold_is_dropped_and_hides_nothing(redis: Redis) -> None:
    transitions = Transitions(redis)
    await redis.set(keys.run("WRONGTYPE"), "x")
    rubbish = {f"GONE{n}:1": n for n in range(50)} | {"WRONGTYPE:1": 60, "no run at all": 61}
    await redis.zadd(keys.QUEUE, rubbish)
    await transitions.accept(run := acceptance())
    await redis.zadd(keys.QUEUE, {f"{run.run_id}:7": 2})
    assert (await claim_one(transitions)).run_id == run.run_id
    assert await redis.zcard(keys.QUEUE) == 0


async def test_a_run_that_this_worker_cannot_read_waits_for_one_that_can(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(new := acceptance(version=2))
    await transitions.accept(old := acceptance())
    assert (await claim_one(transitions)).run_id == old.run_id
    assert await redis.zcard(keys.held("echo", "2")) == 1

    async def shown() -> tuple[Status, str | None, int]:
        record = await Records(redis).get(new.run_id, "default")
        return record.status, record.wait_reason, record.seq

    assert await shown() == (Status.PENDING, "version", 1)
    await sweep(transitions, redis, readable=[("echo", 1)])
    assert await shown() == (Status.PENDING, "version", 1)
    await sweep(transitions, redis, readable=[("echo", 2)])
    assert await shown() == (Status.PENDING, None, 1)
    [claimed] = await transitions.claim("w2", "c2", LEASE, 10, [("echo", 2)])
    assert claimed.version == 2


async def test_a_run_that_was_woken_and_is_held_waits_for_its_version_alone(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(run := acceptance())
    await transitions.release(claimed := await claim_one(transitions), claimed.seq)
    await redis.hset(keys.run(run.run_id), "wait_reason", "timer")
    assert await transitions.claim("w2", "c2", LEASE, 10, []) == []
    record = await Records(redis).get(run.run_id, "default")
    assert (record.status, record.wait_reason) == (Status.RUNNING, "version")

    await redis.delete(keys.held("echo", "1"))
    await redis.zadd(keys.DUE, {run.run_id: 1})
    assert (await sweep(transitions, redis)).requeued == 1
    assert (await Records(redis).get(run.run_id, "default")).wait_reason is None
    assert (await claim_one(transitions)).run_id == run.run_id


@pytest.mark.guarantee("G4")
async def test_no_write_under_a_stale_fence_lands(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(run := acceptance())
    stale = await claim_one(transitions)
    await lapse(redis, run.run_id)
    assert (await sweep(transitions, redis)).lapsed == 1
    before = await redis.hgetall(keys.run(run.run_id))

    async def refused(fresh: bool) -> None:
        with pytest.raises(OwnershipLost):
            await journal.commit(stale, stale.seq, Record("s", b'{"result":1}'))
        with pytest.raises(OwnershipLost):
            await journal.start(stale, stale.seq, steps=["s"])
        with pytest.raises(OwnershipLost):
            await transitions.finish(stale, stale.seq, DONE)
        with pytest.raises(OwnershipLost):
            await park(journal, stale)
        lease = Lease(stale.run_id, stale.fence, stale.seq)
        assert await transitions.heartbeat("w1", LEASE, {}, [lease]) == [lease]
        await transitions.release(stale, stale.seq)
        assert fresh or await redis.hgetall(keys.run(run.run_id)) == before

    await refused(fresh=False)
    fresh = await claim_one(transitions, claim_id="c2")
    assert (fresh.epoch, fresh.reason) == (2, "crash")
    await refused(fresh=True)
    await journal.commit(fresh, fresh.seq, Record("s", b'{"result":2}'))
    await transitions.finish(fresh, fresh.seq, DONE)
    assert [kind for _, kind in await events_of(redis, run.run_id)] == [
        "run.created",
        "run.started",
        "run.resumed",
        "run.completed",
    ]


async def park(journal: JournalStore, run: Claimed, *waits: Wait) -> int | None:
    event = Draft(event=RunWaiting(wait_reason="timer"))
    return await journal.park(
        run, run.seq, status="running", reason="timer", event=event, waits=waits
    )


@pytest.mark.guarantee("G2")
async def test_a_commit_that_comes_twice_counts_once(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(run := acceptance())
    claimed = await claim_one(transitions)
    said = Draft(event=MessageCompleted(text="hi", length=2))
    record = Record("s", b'{"result":1}', usage=Usage(model_calls=1), events=(said,))
    assert (await journal.commit(claimed, claimed.seq, record)).seq == 3
    assert (await journal.commit(claimed, claimed.seq, record)).seq == 3
    assert (await redis.hget(keys.run(run.run_id), "model_calls")) == b"1"
    assert len(await events_of(redis, run.run_id)) == 3


async def test_a_finish_or_park_that_comes_twice_gives_its_first_answer(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(run := acceptance())
    claimed = await claim_one(transitions)
    wait = Wait("nap", "timer", 0, '{"result":null}')
    assert await park(journal, claimed, wait) is None
    assert await park(journal, claimed, wait) is None
    assert (await sweep(transitions, redis)).woken == 1
    again = await claim_one(transitions, claim_id="c2")
    assert again.reason == "timer"
    await transitions.finish(again, again.seq, DONE)
    await transitions.finish(again, again.seq, DONE)
    kinds = [kind for _, kind in await events_of(redis, run.run_id)]
    assert kinds == ["run.created", "run.started", "run.waiting", "run.resumed", "run.completed"]


@pytest.mark.guarantee("G6")
async def test_a_parked_run_holds_nothing_and_its_timer_wakes_it(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(run := acceptance())
    claimed = await claim_one(transitions)
    await park(journal, claimed, Wait("nap", "timer", 3_600_000, '{"result":7}'))
    assert await arq_keys(redis) == []
    assert (await sweep(transitions, redis)).woken == 0
    seconds, _ = await redis.time()
    assert await redis.zscore(keys.DUE, run.run_id) == pytest.approx(
        (seconds + 3600) * 1000, abs=5000
    )

    await redis.hset(keys.waits(run.run_id), "nap", '1|timer|"result":7}')
    await redis.zadd(keys.DUE, {run.run_id: 1})
    assert (await sweep(transitions, redis)).woken == 1
    woken = await claim_one(transitions, claim_id="c2")
    assert woken.signals == 1
    loaded = await journal.load(run.run_id)
    assert loaded.outcomes["nap"].result == 7
    assert await redis.hlen(keys.waits(run.run_id)) == 0


async def test_parking_is_refused_when_a_wait_has_ended_meanwhile(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(run := acceptance())
    claimed = await claim_one(transitions)
    await redis.hincrby(keys.run(run.run_id), "signals", 1)
    assert await park(journal, claimed, Wait("nap", "timer", 5)) == 1
    assert await park(journal, replace(claimed, signals=1), Wait("nap", "timer", 5)) is None


async def test_parking_again_does_not_set_the_timer_back(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(run := acceptance())
    claimed = await claim_one(transitions)
    await redis.hset(keys.waits(run.run_id), "nap", "99999999999999|timer|x")
    await park(journal, claimed, Wait("nap", "timer", 5))
    assert await redis.zscore(keys.DUE, run.run_id) == 99999999999999


@pytest.mark.guarantee("G7")
async def test_a_released_run_is_in_the_queue_at_once_and_counts_no_crash(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(run := acceptance())
    await transitions.accept(acceptance())
    [first] = await transitions.claim("w1", "c1", LEASE, 1, READABLE)
    assert first.run_id == run.run_id
    await transitions.release(first, first.seq)
    await transitions.release(first, first.seq)
    [again] = await transitions.claim("w1", "c2", LEASE, 1, READABLE)
    assert (again.run_id, again.reason) == (run.run_id, "drain")
    assert await redis.hget(keys.run(run.run_id), "crashes") is None


async def test_a_lower_seq_than_told_means_a_lost_tail_and_the_run_goes_on(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(acceptance())
    claimed = await claim_one(transitions)
    with pytest.raises(OwnershipLost):
        await journal.commit(claimed, claimed.seq + 5, Record("s", b'{"result":1}'))
    again = await claim_one(transitions, claim_id="c2")
    assert again.reason == "lost"


async def test_no_lease_ends_in_the_first_lease_after_nobody_swept(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(run := acceptance())
    await claim_one(transitions)
    await lapse(redis, run.run_id)
    swept = await transitions.sweep(LEASE, may_end_leases=True, readable=READABLE)
    assert swept.lapsed == 0
    await redis.hset(keys.SWEEP, "quiet_until", 0)
    await redis.zadd(keys.DUE, {run.run_id: 1})
    assert (await transitions.sweep(LEASE, may_end_leases=False, readable=READABLE)).lapsed == 0
    await redis.zadd(keys.DUE, {run.run_id: 1})
    assert (await transitions.sweep(LEASE, may_end_leases=True, readable=READABLE)).lapsed == 1


async def test_a_crash_counts_also_when_nothing_was_heard_since_the_claim(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(run := acceptance())
    for crashes in (1, 2):
        claimed = await claim_one(transitions, claim_id=f"c{crashes}")
        await lapse(redis, run.run_id)
        await sweep(transitions, redis)
        assert await redis.hget(keys.run(run.run_id), "crashes") == b"%d" % crashes
    claimed = await claim_one(transitions, claim_id="c3")
    assert claimed.suspect
    await journal.commit(claimed, claimed.seq, Record("a", b'{"result":1}'))
    assert await redis.hget(keys.run(run.run_id), "crashes") == b"0"


async def test_lost_and_locked_queue_entries_are_written_again_but_waiting_ones_are_left(
    redis: Redis,
) -> None:
    transitions = Transitions(redis)
    lost, locked, waiting = acceptance(), acceptance(), acceptance()
    for run in (lost, locked, waiting):
        await transitions.accept(run)
    await redis.zrem(keys.QUEUE, f"{lost.run_id}:1")
    await redis.set(f"arq:in-progress:{locked.run_id}:1", "1")
    for run in (lost, locked, waiting):
        await redis.zadd(keys.DUE, {run.run_id: 1})
    assert (await sweep(transitions, redis)).requeued == 1
    await redis.hset(keys.run(locked.run_id), "locked_since", 1)
    await redis.zadd(keys.DUE, {locked.run_id: 1})
    assert (await sweep(transitions, redis)).requeued == 1
    claimed = await transitions.claim("w1", "c1", LEASE, 10, READABLE)
    dispatches = {run.run_id: run.dispatch for run in claimed}
    assert dispatches == {lost.run_id: 2, locked.run_id: 2, waiting.run_id: 1}
    assert await arq_keys(redis) == []


async def test_deleting_leaves_nothing(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(run := acceptance())
    with pytest.raises(Conflict):
        await transitions.delete(run.run_id, "default")
    claimed = await claim_one(transitions)
    await journal.start(claimed, 2, steps=["s"], pins=[Prompt("p", 1, "text")])
    big = Record("s", b'{"blob":"x"}', blob=b'"' + b"x" * 70_000 + b'"')
    await journal.commit(claimed, claimed.seq, big)
    await transitions.finish(claimed, claimed.seq, DONE)
    with pytest.raises(NotFound):
        await transitions.delete(run.run_id, "somebody else")
    await transitions.delete(run.run_id, "default")
    with pytest.raises(NotFound):
        await transitions.delete(run.run_id, "default")
    left = {key for key in await redis.keys("*") if not key.startswith(b"claims:")}
    assert left <= {b"queue:counter", b"queue:wake", b"queue:drained", b"sweep"}


async def test_an_ended_run_goes_when_its_time_is_over_and_not_before(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(run := acceptance())
    claimed = await claim_one(transitions)
    await transitions.finish(claimed, claimed.seq, DONE)
    await redis.zadd(keys.DUE, {run.run_id: 1})
    assert (await sweep(transitions, redis)).purged == 0
    await redis.hset(keys.run(run.run_id), "ttl", 0)
    await redis.zadd(keys.DUE, {run.run_id: 1})
    assert (await sweep(transitions, redis)).purged == 1
    assert await redis.keys("run:*") == []
    assert await redis.keys("index:*") == []


async def test_one_broken_record_does_not_stop_the_sweep(redis: Redis) -> None:
    transitions = Transitions(redis)
    await transitions.accept(broken := acceptance())
    await transitions.accept(sound := acceptance())
    await redis.zrem(keys.QUEUE, f"{broken.run_id}:1", f"{sound.run_id}:1")
    await redis.hset(keys.run(broken.run_id), "workflow", "")
    await redis.delete("held::1")
    await redis.set("held::1", "not a zset")
    await redis.zadd(keys.DUE, {broken.run_id: 1, sound.run_id: 2})
    swept = await sweep(transitions, redis)
    assert (swept.broken, swept.requeued) == (1, 1)


async def test_a_thousand_parallel_commits_lose_nothing(redis: Redis) -> None:
    transitions, journal = Transitions(redis), JournalStore(redis)
    await transitions.accept(run := acceptance())
    claimed = await claim_one(transitions)
    said = Draft(event=MessageCompleted(text="hi", length=2))

    async def commit(n: int) -> None:
        await journal.commit(claimed, 0, Record(f"s/{n}", b'{"result":1}', events=(said,)))

    for start in range(0, 1000, 50):
        await asyncio.gather(*(commit(n) for n in range(start, start + 50)))
    assert await redis.hlen(keys.journal(run.run_id)) == 1000
    seqs = [seq for seq, _ in await events_of(redis, run.run_id)]
    assert seqs == list(range(1, 1003))
