"""What two do to one run at the same moment: each race has one truthful answer, and leaves nothing behind."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis

from posthouse.errors import Conflict, OwnershipLost
from posthouse.events.types import TERMINAL_TYPES, Draft, RunCompleted, RunCreated, RunWaiting
from posthouse.events.types import RunFailed as RunFailedEvent
from posthouse.ids import new_run_id, new_token
from posthouse.journal.model import Wait
from posthouse.journal.store import JournalStore, Record
from posthouse.runs.model import TERMINAL, Status
from posthouse.runs.ownership import Claimed
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys
from posthouse.storage.connect import connect

RACES, FEWER, LANES = 1_000, 200, 40
OFFSET_SECONDS = 0.001
LEASE = 60_000
READABLE = [("echo", 1)]
DONE = Ending(Status.COMPLETED, Draft(event=RunCompleted()), "{}")
PROBLEM = RunFailedEvent(code="fatal", message="no", retryable=False)
FAILED = Ending(Status.FAILED, Draft(event=PROBLEM), "", '{"code":"fatal"}')


@dataclass
class Arena:
    """A caller and a worker with connections of their own, and what they were told."""

    redis: Redis
    caller: Transitions
    worker: Transitions
    journal: JournalStore
    chance: Random = field(default_factory=lambda: Random(4))
    runs: list[str] = field(default_factory=list)

    async def accept(self) -> str:
        created = Draft(event=RunCreated(workflow="echo", version=1))
        run = Acceptance(new_run_id(), "default", "echo", 1, "{}", "{}", created, 60_000)
        await self.caller.accept(run)
        self.runs.append(run.run_id)
        return run.run_id

    async def claim(self, run_id: str, dispatch: int = 1) -> list[Claimed]:
        job = f"{run_id}:{dispatch}"
        return await self.worker.claim("w1", new_token(), LEASE, 1, READABLE, job=job)

    async def claimed(self) -> Claimed:
        [run] = await self.claim(await self.accept())
        return run

    async def ended(self, ending: Ending) -> tuple[str, int]:
        """A run that has ended so, with its seq."""
        run = await self.claimed()
        await self.worker.finish(run, run.seq, ending)
        return run.run_id, run.seq + 1

    async def cancel(self, run_id: str) -> None:
        await self.caller.cancel(run_id, "default")

    async def status(self, run_id: str) -> str:
        return (await self.redis.hget(keys.run(run_id), "status") or b"").decode()

    async def race(self, *rivals: Coroutine[Any, Any, Any]) -> list[Any]:
        """What each was answered: nothing, its value, or a refusal."""
        return await asyncio.gather(*map(self._after_a_moment, rivals), return_exceptions=True)

    async def _after_a_moment(self, rival: Coroutine[Any, Any, Any]) -> Any:
        await asyncio.sleep(self.chance.uniform(0, OFFSET_SECONDS))
        return await rival


@pytest.fixture
async def arena(redis: Redis, valkey_url: str) -> AsyncIterator[Arena]:
    caller, worker = connect(valkey_url), connect(valkey_url)
    scripts = Transitions(worker)
    yield Arena(redis, Transitions(caller), scripts, JournalStore(worker))
    await caller.aclose()
    await worker.aclose()


async def held(times: int, race: Callable[[], Awaitable[str]], lanes: int = LANES) -> Counter[str]:
    """How often each outcome came."""
    outcomes: Counter[str] = Counter()
    left = iter(range(times))

    async def lane() -> None:
        for _ in left:
            outcomes[await race()] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(lanes):
            tasks.create_task(lane())
    print(f"\n{dict(outcomes)}")
    assert outcomes.total() == times
    return outcomes


async def only_live_runs_wait(arena: Arena) -> None:
    """A live run has its one queue entry and no expiry, another has nothing of the kind."""
    live = [run for run in arena.runs if await arena.status(run) not in TERMINAL]
    jobs = await arena.redis.zrange(keys.QUEUE, 0, -1)
    assert sorted(job.decode().partition(":")[0] for job in jobs) == sorted(live)
    assert set(await arena.redis.keys("arq:job:*")) == {b"arq:job:" + job for job in jobs}
    for run_id in live:
        assert await arena.redis.pttl(keys.events(run_id)) == -1


async def all_is_well(arena: Arena) -> None:
    """Everything that waits is carried to its end; then nothing of any run is left where it should not be."""
    await only_live_runs_wait(arena)
    while runs := await arena.worker.claim("w1", new_token(), LEASE, 32, READABLE):
        for run in runs:
            await arena.worker.finish(run, run.seq, DONE)
    redis = arena.redis
    kinds = {key.decode().rpartition(":")[2] for key in await redis.keys("run:*:*")}
    assert kinds <= {"events", "journal", "archive"}
    assert not await redis.keys("arq:*")
    assert not await redis.keys("held*")
    pipe = redis.pipeline(transaction=False)
    for run_id in arena.runs:
        pipe.hget(keys.run(run_id), "status")
        pipe.xrange(keys.events(run_id))
        pipe.pttl(keys.events(run_id))
        pipe.zscore(keys.DUE, run_id)
    answers = iter(await pipe.execute())
    by_status: dict[str, set[bytes]] = {status: set() for status in Status}
    for run_id, status, events, left, due in zip(arena.runs, *[answers] * 4, strict=True):
        by_status[status.decode()].add(run_id.encode())
        assert left > 0
        assert due is not None
        one_end_each([fields[b"type"].decode() for _, fields in events], status.decode())
        assert [number for number, _ in events] == [b"%d-0" % n for n in range(1, len(events) + 1)]
    for status, members in by_status.items():
        assert members == set(await redis.zrange(keys.index("default", status), 0, -1)), status
        assert not members or Status(status) in TERMINAL
    assert set(await redis.zrange(keys.index("default"), 0, -1)) == set().union(*by_status.values())


def one_end_each(types: list[str], status: str) -> None:
    """A run, and each time that it was tried again, has one terminal event, the last one."""
    generations: list[list[str]] = [[]]
    for kind in types:
        if kind == "run.retried":
            generations.append([])
        generations[-1].append(kind)
    for generation in generations:
        assert [kind in TERMINAL_TYPES for kind in generation].index(True) == len(generation) - 1
    assert types[-1] == f"run.{status}"


@pytest.mark.guarantee("G9")
async def test_cancel_against_finish(arena: Arena) -> None:
    async def race() -> str:
        run = await arena.claimed()
        told, done = await arena.race(
            arena.cancel(run.run_id), arena.worker.finish(run, run.seq, DONE)
        )
        status = await arena.status(run.run_id)
        if told is None:
            assert (type(done), status) == (OwnershipLost, "cancelled")
        else:
            assert (type(told), done, status) == (Conflict, None, "completed")
            assert str(told) == "the run has ended: it is completed"
        return status

    outcomes = await held(RACES, race)
    assert min(outcomes["cancelled"], outcomes["completed"]) > RACES / 20
    await all_is_well(arena)


async def test_cancel_against_a_claim(arena: Arena) -> None:
    async def race() -> str:
        run_id = await arena.accept()
        told, got = await arena.race(arena.cancel(run_id), arena.claim(run_id))
        assert (told, await arena.status(run_id)) == (None, "cancelled")
        for run in got:
            with pytest.raises(OwnershipLost):
                await arena.journal.commit(run, run.seq, Record("a", b'{"result":1}'))
        return "taken" if got else "not taken"

    assert len(await held(FEWER, race)) == 2
    await all_is_well(arena)


WAITS = [Wait("nap", "timer", 0, '{"result":null}')]


async def park(arena: Arena, run: Claimed) -> None:
    event = Draft(event=RunWaiting(wait_reason="timer"))
    await arena.journal.park(
        run, run.seq, status="running", reason="timer", event=event, waits=WAITS
    )


async def test_cancel_against_parking(arena: Arena) -> None:
    async def race() -> str:
        run = await arena.claimed()
        told, parked = await arena.race(arena.cancel(run.run_id), park(arena, run))
        assert (told, await arena.status(run.run_id)) == (None, "cancelled")
        assert parked is None or type(parked) is OwnershipLost
        return "parked first" if parked is None else "cancelled first"

    assert len(await held(FEWER, race)) == 2
    await all_is_well(arena)


async def test_cancel_against_a_timer_that_rings(arena: Arena) -> None:
    async def race() -> str:
        await park(arena, run := await arena.claimed())
        sweep = arena.worker.sweep(LEASE, may_end_leases=True, readable=READABLE)
        told, swept = await arena.race(arena.cancel(run.run_id), sweep)
        assert (told, await arena.status(run.run_id)) == (None, "cancelled")
        assert await arena.claim(run.run_id, 2) == []
        return f"{swept.woken} woken"

    assert len(await held(FEWER, race, lanes=1)) == 2
    await all_is_well(arena)


async def test_cancel_against_a_retry(arena: Arena) -> None:
    async def race() -> str:
        run_id, seen = await arena.ended(FAILED)
        retry = arena.caller.retry(run_id, "default", seen, [])
        told, tried = await arena.race(arena.cancel(run_id), retry)
        assert tried is None
        status = await arena.status(run_id)
        if told is None:
            assert status == "cancelled"
        else:
            assert (type(told), str(told)) == (Conflict, "the run has ended: it is failed")
            assert status == "pending"
        return status

    assert set(await held(FEWER, race)) == {"cancelled", "pending"}
    await all_is_well(arena)


async def test_retry_against_retry(arena: Arena) -> None:
    async def race() -> str:
        run_id, seen = await arena.ended(FAILED)
        tries = [arena.caller, arena.worker]
        answers = await arena.race(*(one.retry(run_id, "default", seen, []) for one in tries))
        assert answers == [None, None]
        types = [fields[b"type"] for _, fields in await arena.redis.xrange(keys.events(run_id))]
        assert types.count(b"run.retried") == 1
        assert await arena.claim(run_id, 3) == []
        return await arena.status(run_id)

    assert await held(FEWER, race) == {"pending": FEWER}
    assert await arena.redis.zcard(keys.QUEUE) == FEWER
    await all_is_well(arena)


@pytest.mark.parametrize("crashes", [0, 2])
async def test_cancel_against_a_crash(arena: Arena, crashes: int) -> None:
    async def race() -> str:
        run = await arena.claimed()
        await arena.redis.hset(keys.run(run.run_id), "crashes", crashes)
        told, poisoned = await arena.race(arena.cancel(run.run_id), arena.worker.crash(run))
        status = await arena.status(run.run_id)
        if told is None:
            assert status == "cancelled"
            assert poisoned is False or type(poisoned) is OwnershipLost
        else:
            assert (type(told), str(told)) == (Conflict, "the run has ended: it is failed")
            assert (poisoned, status) == (True, "failed")
        return "crashed first" if isinstance(poisoned, bool) else "cancelled first"

    outcomes = await held(FEWER // 2, race)
    assert len(outcomes) == 2
    dead = await arena.redis.zcard(keys.index("default", "dead"))
    assert dead == (outcomes["crashed first"] if crashes else 0)
    await all_is_well(arena)
