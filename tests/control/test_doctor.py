"""What outlives its run or gets lost is found and mended; what is sound, or new, is left alone."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from posthouse.control.doctor import Doctor, Kind
from posthouse.errors import StorageUnavailable
from posthouse.events.types import Draft, RunCompleted, RunCreated, RunWaiting
from posthouse.ids import new_run_id
from posthouse.journal.model import Wait
from posthouse.journal.store import JournalStore, Record
from posthouse.runs.model import Status
from posthouse.runs.ownership import Claimed
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys
from posthouse.storage.connect import connect
from posthouse.storage.scripts import Script, Scripts, source
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

READABLE = [("echo", 1)]
DONE = Ending(Status.COMPLETED, Draft(event=RunCompleted()), "{}")
GONE = "01K00000000000000000000000"
INDEX = keys.index("default")
BLOB = b'"large"'


def acceptance(**changes: Any) -> Acceptance:
    created = Draft(event=RunCreated(workflow="echo", version=1))
    plain = Acceptance(new_run_id(), "default", "echo", 1, "{}", "{}", created, 60_000)
    return replace(plain, **changes)


class Yard:
    """One run of each kind on one Redis: waiting, working, parked with and without a timer, ended, for later."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.transitions, self.journal = Transitions(redis), JournalStore(redis)
        self.ids: dict[str, str] = {}

    async def fill(self) -> None:
        for name in ("working", "napping", "asking", "ended"):
            self.ids[name] = (await self.transitions.accept(acceptance())).run_id
        runs = {run.run_id: run for run in await self.claimed()}
        await self.park(runs[self.ids["napping"]], 60_000)
        await self.park(runs[self.ids["asking"]], None)
        large = Record("large", b'{"result":null}', blob=BLOB)
        working, ended = runs[self.ids["working"]], runs[self.ids["ended"]]
        await self.journal.commit(working, working.seq, large)
        await self.transitions.finish(ended, ended.seq, DONE)
        self.ids["waiting"] = (
            await self.transitions.accept(acceptance(idempotency_key="k"))
        ).run_id
        later = acceptance(not_before_ms=10**14)
        self.ids["later"] = (await self.transitions.accept(later)).run_id
        await self.transitions.heartbeat("w", 60_000, {"pid": 1}, [])

    async def claimed(self) -> list[Claimed]:
        return await self.transitions.claim("w", new_run_id(), 60_000, 10, READABLE)

    async def park(self, run: Claimed, after_ms: int | None) -> None:
        event = Draft(event=RunWaiting(wait_reason="timer"))
        wait = Wait("nap", "timer", after_ms, "")
        await self.journal.park(
            run, run.seq, status="running", reason="timer", event=event, waits=[wait]
        )

    def key(self, name: str, suffix: str = "") -> str:
        return f"run:{self.ids[name]}{suffix}"


@pytest.fixture
async def yard(redis: Redis) -> Yard:
    made = Yard(redis)
    await made.fill()
    return made


Damage = Callable[[Yard], Awaitable[list[tuple[Kind, str, str]]]]
Cured = Callable[[list[tuple[Kind, str, str]]], Awaitable[bool]]


async def a_job_of_no_run(yard: Yard) -> list[tuple[Kind, str, str]]:
    job = f"{GONE}:1"
    await yard.redis.zadd(keys.QUEUE, {job: 5})
    await yard.redis.set(f"arq:job:{job}", "{}")
    await yard.redis.set(f"arq:retry:{job}", "1")
    return [
        (Kind.STALE_JOB, keys.QUEUE, job),
        (Kind.STALE_JOB, f"arq:job:{job}", ""),
        (Kind.STALE_JOB, f"arq:retry:{job}", ""),
    ]


async def jobs_that_nobody_may_take(yard: Yard) -> list[tuple[Kind, str, str]]:
    jobs = [f"{yard.ids[name]}:1" for name in ("working", "napping", "ended")]
    jobs += [f"{yard.ids['waiting']}:7"]
    for job in jobs:
        await yard.redis.zadd(keys.QUEUE, {job: 5})
    return [(Kind.STALE_JOB, keys.QUEUE, job) for job in jobs]


async def a_lock_of_an_ended_run(yard: Yard) -> list[tuple[Kind, str, str]]:
    key = f"arq:in-progress:{yard.ids['ended']}:1"
    await yard.redis.set(key, "1")
    return [(Kind.STALE_JOB, key, "")]


async def a_held_job_of_no_run(yard: Yard) -> list[tuple[Kind, str, str]]:
    key, job = keys.held("echo", "2"), f"{GONE}:3"
    await yard.redis.zadd(key, {job: 5})
    return [(Kind.STALE_JOB, key, job)]


async def entries_of_no_run(yard: Yard) -> list[tuple[Kind, str, str]]:
    indexes = [INDEX, keys.index("default", "running"), keys.index("default", "dead")]
    for key in indexes:
        await yard.redis.zadd(key, {GONE: 0})
    for key in (keys.DUE, keys.LATER):
        await yard.redis.zadd(key, {GONE: 10**14})
    return [
        *((Kind.STALE_INDEX, key, GONE) for key in indexes),
        (Kind.STALE_DUE, keys.DUE, GONE),
        (Kind.STALE_DUE, keys.LATER, GONE),
    ]


async def a_run_under_wrong_statuses(yard: Yard) -> list[tuple[Kind, str, str]]:
    run_id = yard.ids["waiting"]
    wrong = [keys.index("default", "failed"), keys.index("default", "dead"), keys.index("other")]
    for key in wrong:
        await yard.redis.zadd(key, {run_id: 0})
    return [(Kind.STALE_INDEX, key, run_id) for key in wrong]


async def runs_that_no_list_shows(yard: Yard) -> list[tuple[Kind, str, str]]:
    lost = [(INDEX, yard.ids["ended"]), (keys.index("default", "pending"), yard.ids["waiting"])]
    for key, run_id in lost:
        await yard.redis.zrem(key, run_id)
    return [(Kind.MISSING_INDEX, key, run_id) for key, run_id in lost]


async def runs_that_nobody_would_look_at(yard: Yard) -> list[tuple[Kind, str, str]]:
    await yard.redis.delete(keys.DUE)
    names = ("working", "napping", "ended", "waiting", "later")
    return [(Kind.MISSING_DUE, keys.DUE, yard.ids[name]) for name in names]


async def live_runs_that_would_end_by_themselves(yard: Yard) -> list[tuple[Kind, str, str]]:
    lost = [
        *(yard.key("working", suffix) for suffix in ("", ":events", ":journal")),
        keys.blob(yard.ids["working"], hashlib.sha256(BLOB).hexdigest()),
        yard.key("napping", ":waits"),
    ]
    for key in lost:
        await yard.redis.expire(key, 1000)
    return [(Kind.EXPIRING, key, "") for key in lost]


async def keys_without_a_record(yard: Yard) -> list[tuple[Kind, str, str]]:
    lost = [f"run:{GONE}:{part}" for part in ("events", "journal", "blob:d", "tree")]
    for key in lost:
        await yard.redis.set(key, "1")
    return [(Kind.ORPHAN, key, "") for key in lost]


async def waits_of_an_ended_run(yard: Yard) -> list[tuple[Kind, str, str]]:
    lost = [yard.key("ended", ":waits"), yard.key("ended", ":starts")]
    for key in lost:
        await yard.redis.hset(key, "a", "1")
    return [(Kind.LEFTOVER, lost[0], ""), (Kind.LEFTOVER, lost[1], "a")]


async def passing_things_that_stay(yard: Yard) -> list[tuple[Kind, str, str]]:
    lost = [keys.worker("dead"), keys.claims("c")]
    await yard.redis.hset(lost[0], mapping={"pid": 1, "seen_at": 1})
    await yard.redis.rpush(lost[1], GONE)
    return [(Kind.LASTING, key, "") for key in lost]


DAMAGES: list[Damage] = [
    a_job_of_no_run,
    jobs_that_nobody_may_take,
    a_lock_of_an_ended_run,
    a_held_job_of_no_run,
    entries_of_no_run,
    a_run_under_wrong_statuses,
    runs_that_no_list_shows,
    runs_that_nobody_would_look_at,
    live_runs_that_would_end_by_themselves,
    keys_without_a_record,
    waits_of_an_ended_run,
    passing_things_that_stay,
]


async def everything(redis: Redis) -> dict[bytes, bytes | None]:
    return {key: await redis.dump(key) for key in sorted(await redis.keys("*"))}


async def test_runs_in_every_state_are_no_finding(yard: Yard, doctor: Doctor) -> None:
    assert await doctor.examine() == []


@pytest.mark.parametrize("damage", DAMAGES)
async def test_each_kind_is_found_and_mended_and_nothing_else_is_touched(
    yard: Yard, cured: Cured, damage: Damage
) -> None:
    before = await everything(yard.redis)
    expected = await damage(yard)
    assert await cured(expected)
    after = await everything(yard.redis)
    kinds = {kind for kind, *_ in expected}
    if not kinds & {Kind.MISSING_DUE, Kind.LASTING}:
        assert after == before


async def test_a_run_that_was_lost_is_carried_to_its_end(yard: Yard, doctor: Doctor) -> None:
    """Its queue entry is gone as well, so that only the sweep can bring it back."""
    await yard.redis.delete(keys.DUE, keys.QUEUE)
    await doctor.mend(await doctor.examine())
    swept = await yard.transitions.sweep(60_000, may_end_leases=True, readable=READABLE)
    assert swept.requeued == 1
    [run] = await yard.claimed()
    await yard.transitions.finish(run, run.seq, DONE)
    assert run.run_id == yard.ids["waiting"]
    assert await doctor.examine() == []


async def test_a_run_that_is_accepted_meanwhile_is_not_harmed(redis: Redis, doctor: Doctor) -> None:
    run = acceptance()
    job = f"{run.run_id}:1"
    await redis.set(keys.prompts(run.run_id), "1")
    await redis.zadd(keys.QUEUE, {job: 5})
    await redis.zadd(keys.DUE, {run.run_id: 5})
    await redis.zadd(INDEX, {run.run_id: 0})
    findings = await doctor.examine()
    assert len(findings) == 4
    await redis.delete(keys.prompts(run.run_id))
    await Transitions(redis).accept(run)
    before = await everything(redis)
    assert {one.deed for one in await doctor.mend(findings)} == {"gone by itself"}
    assert await everything(redis) == before


class MeanwhileScripts(Scripts):
    """Takes the finding away as soon as it was looked at."""

    async def call(self, script: Script, *arguments: str | int | bytes) -> list[Any]:
        reply = await super().call(script, *arguments)
        await self._redis.zrem(INDEX, GONE)
        return reply


async def test_what_is_amiss_only_for_a_moment_is_no_finding(redis: Redis) -> None:
    await redis.zadd(INDEX, {GONE: 0})
    assert await Doctor(redis, MeanwhileScripts(redis), grace_seconds=0).examine() == []


async def test_what_cannot_be_read_is_named_and_left(yard: Yard, doctor: Doctor) -> None:
    broken, run_id = yard.key("waiting"), yard.ids["waiting"]
    await yard.redis.hdel(broken, "status")
    before = await everything(yard.redis)
    findings = await doctor.examine()
    assert [(one.kind, one.key, one.member) for one in findings] == [(Kind.UNREADABLE, broken, "")]
    assert [one.deed for one in await doctor.mend(findings)] == [""]
    assert await everything(yard.redis) == before
    assert await yard.redis.zscore(INDEX, run_id) == 0


async def test_a_run_of_a_newer_posthouse_is_none_of_our_business(
    yard: Yard, doctor: Doctor
) -> None:
    for name, run_id in yard.ids.items():
        await yard.redis.hset(keys.run(run_id), "v", 99)
        await yard.redis.expire(yard.key(name, ":events"), 1000)
        await yard.redis.zadd(keys.index("default", "of a new kind"), {run_id: 0})
        await yard.redis.zadd(keys.QUEUE, {f"{run_id}:55": 9})
    await yard.redis.delete(keys.DUE)
    assert await doctor.examine() == []


async def test_many_pages(redis: Redis, doctor: Doctor) -> None:
    members = {new_run_id(): 0 for _ in range(1500)}
    await redis.zadd(INDEX, members)
    pipe = redis.pipeline(transaction=False)
    for run_id in members:
        pipe.set(keys.journal(run_id), "1")
    await pipe.execute()
    findings = await doctor.examine()
    assert len(findings) == 3000
    await doctor.mend(findings)
    assert await redis.dbsize() == 0


class FaultyScripts(Scripts):
    """The doctor's script with its n-th call to Redis failing, once."""

    def __init__(self, redis: Redis, number: int) -> None:
        super().__init__(redis)
        self._client, self._number, self.struck = redis, number, False

    async def call(self, script: Script, *arguments: str | int | bytes) -> list[Any]:
        if self.struck or arguments[0] != 1:
            return await super().call(script, *arguments)
        self.struck = True
        flags, _, body = source(script).partition("\n")
        text = f"""{flags}
local real, calls = redis, 0
local redis = setmetatable({{}}, {{ __index = real }})
function redis.call(...)
  calls = calls + 1
  if calls == {self._number} then error('planted') end
  return real.call(...)
end
{body}"""
        return list(await self._client.eval(text, 0, *arguments))


async def test_a_failed_call_while_it_mends_harms_nothing(redis: Redis) -> None:
    for number in range(1, 150, 3):
        await redis.flushall()
        yard = Yard(redis)
        await yard.fill()
        before = await everything(redis)
        for damage in DAMAGES:
            if damage is not runs_that_nobody_would_look_at:
                await damage(yard)
        doctor = Doctor(redis, FaultyScripts(redis, number), grace_seconds=0)
        try:
            await doctor.mend(await doctor.examine())
        except ResponseError:
            assert number <= 2
        await doctor.mend(await doctor.examine())
        left = await everything(redis)
        for passing in (keys.worker("dead"), keys.claims("c")):
            del left[passing.encode()]
        assert left == before, number


async def test_redis_away(valkey: Any) -> None:
    redis = connect(valkey.url)
    valkey.kill()
    with pytest.raises(StorageUnavailable):
        await Doctor(redis).examine()
    await redis.aclose()


class Given(BaseModel):
    n: int = 0


class Got(BaseModel):
    value: int


async def steps_and_a_nap(ctx: RunContext, given: Given) -> Got:
    async def work(n: int) -> int:
        await asyncio.sleep(0)
        return n

    total = 0
    for step in range(5):
        total += await ctx.step(f"step-{step}", work, given.n)
    await ctx.sleep("nap", 0.05)
    return Got(value=total + await ctx.step("last", work, 1))


async def test_a_fleet_at_work_is_no_finding(redis: Redis, valkey_url: str) -> None:
    """Also when a worker of it dies and another one is drained."""
    workflow = Workflow("flow", 1, "", Given, Got, steps_and_a_nap)
    async with LocalFleet(valkey_url, [workflow]) as fleet:
        doctor, looks = Doctor(fleet.redis), 0
        dying, leaving, _ = [fleet.worker(slots=10) for _ in range(3)]

        async def carry() -> list[Status]:
            ids = [await fleet.submit("flow", '{"n":1}') for _ in range(200)]
            await fleet.ended(ids[20])
            await fleet.dead(dying)
            await fleet.drained(leaving)
            return [(await fleet.ended(run_id)).status for run_id in ids]

        carrying = asyncio.create_task(carry())
        while not carrying.done():
            assert await doctor.examine() == []
            looks += 1
        assert set(await carrying) == {Status.COMPLETED}
        assert await doctor.examine() == []
        assert looks > 3


async def test_what_is_somebody_elses_is_left_alone(yard: Yard, doctor: Doctor) -> None:
    await yard.redis.zadd(keys.QUEUE, {"what is this": 5, "0123abcd": 5})
    await yard.redis.set("arq:job:0123abcd", "theirs")
    await yard.redis.zadd("index:products", {"horse": 0})
    await yard.redis.zadd(keys.DUE, {"theirs": 1})
    await yard.redis.hset("worker:billing", "name", "x")
    before = await everything(yard.redis)
    assert await doctor.mend(await doctor.examine()) == []
    assert await everything(yard.redis) == before
