"""That the fence is what keeps stale writes out: with the check taken from a script, they land in its place."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from posthouse.budget.model import Reservation
from posthouse.errors import OwnershipLost
from posthouse.events.types import Draft, MessageCompleted, RunCompleted, RunCreated, RunWaiting
from posthouse.ids import new_run_id
from posthouse.inputs.model import Kind, Question, Request
from posthouse.journal.model import Wait
from posthouse.journal.store import JournalStore, Record, Spawn
from posthouse.runs.model import Status
from posthouse.runs.ownership import Claimed, Lease
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys
from posthouse.storage.scripts import Script, Scripts, source

pytestmark = pytest.mark.guarantee("G4")

LEASE = 60_000
READABLE = [("echo", 1)]
SAID = Draft(event=MessageCompleted(text="hi", length=2))
CHECK = "local run, answer = owned("
# What stands in its place: the run as it is, whoever asks.
NO_CHECK = "local run, answer = (function(id) return load_run(id), 'owned' end)("

Write = Callable[[Transitions, JournalStore, Claimed], Awaitable[Any]]


class WithoutFence(Scripts):
    """The scripts as they are, but one that lets everybody write."""

    def __init__(self, redis: Redis, script: Script) -> None:
        super().__init__(redis)
        text = source(script)
        assert text.count(CHECK) == 1, f"{script} checks its fence once, and in this way"
        self._client, self._script, self._text = redis, script, text.replace(CHECK, NO_CHECK)

    async def call(self, script: Script, *arguments: str | int | bytes) -> list[Any]:
        if script is self._script:
            return list(await self._client.eval(self._text, 0, *arguments))
        return await super().call(script, *arguments)


async def start(_: Transitions, journal: JournalStore, run: Claimed) -> None:
    await journal.start(run, run.seq, steps=["s"], events=[SAID])


async def commit(_: Transitions, journal: JournalStore, run: Claimed) -> None:
    await journal.commit(run, run.seq, Record("s", b'{"result":1}', events=(SAID,)))


async def park(_: Transitions, journal: JournalStore, run: Claimed) -> None:
    await journal.park(
        run,
        run.seq,
        status="running",
        reason="timer",
        event=Draft(event=RunWaiting(wait_reason="timer")),
        waits=[Wait("nap", "timer", 0, '{"result":null}')],
    )


async def spawn(_: Transitions, journal: JournalStore, run: Claimed) -> None:
    created = Draft(event=RunCreated(workflow="echo", version=1))
    one = Spawn("s", "s/end", new_run_id(), b'{"result":1}', "s", "echo", 1, "{}", created)
    await journal.spawn(run, run.seq, one)


async def ask(_: Transitions, journal: JournalStore, run: Claimed) -> None:
    question = Question("q", Request(kind=Kind.QUESTION, question="Why?"))
    await journal.ask(run, run.seq, question, "")


async def reserve(_: Transitions, journal: JournalStore, run: Claimed) -> None:
    await journal.reserve(run, run.seq, Reservation("s", model_calls=1))


async def extend(_: Transitions, journal: JournalStore, run: Claimed) -> None:
    await journal.extend(run, run.seq, "s", {"tokens": 1})


async def release(transitions: Transitions, _: JournalStore, run: Claimed) -> None:
    await transitions.release(run, run.seq)


async def finish(transitions: Transitions, _: JournalStore, run: Claimed) -> None:
    ending = Ending(Status.COMPLETED, Draft(event=RunCompleted()), "{}")
    await transitions.finish(run, run.seq, ending)


async def isolate(transitions: Transitions, _: JournalStore, run: Claimed) -> None:
    await transitions.isolate(run)


async def crash(transitions: Transitions, _: JournalStore, run: Claimed) -> None:
    await transitions.crash(run)


async def heartbeat(transitions: Transitions, _: JournalStore, run: Claimed) -> None:
    lease = Lease(run.run_id, run.fence, run.seq)
    if await transitions.heartbeat("stale", LEASE * 2, {}, [lease]):
        raise OwnershipLost


WRITES: dict[Script, Write] = {
    Script.START: start,
    Script.COMMIT: commit,
    Script.PARK: park,
    Script.SPAWN: spawn,
    Script.ASK: ask,
    Script.RESERVE: reserve,
    Script.EXTEND: extend,
    Script.RELEASE: release,
    Script.FINISH: finish,
    Script.ISOLATE: isolate,
    Script.CRASH: crash,
    Script.HEARTBEAT: heartbeat,
}


def test_every_script_that_takes_a_fence_is_here() -> None:
    assert {script for script in Script if "owned(" in own(script)} == set(WRITES)


def own(script: Script) -> str:
    """The script without the prelude."""
    return source(script).rpartition("\n-- ARGV")[2]


async def two_owners(redis: Redis) -> tuple[Claimed, Claimed]:
    """The one that lost its lease, and the one that owns the run now."""
    await redis.flushall()
    transitions = Transitions(redis)
    created = Draft(event=RunCreated(workflow="echo", version=1))
    run = Acceptance(new_run_id(), "default", "echo", 1, "{}", "{}", created, 60_000)
    await transitions.accept(run)
    [stale] = await transitions.claim("stale", "c1", LEASE, 1, READABLE)
    await redis.hset(keys.run(run.run_id), "lease", 1)
    await redis.zadd(keys.DUE, {run.run_id: 1})
    seconds, _ = await redis.time()
    await redis.hset(keys.SWEEP, mapping={"last": seconds * 1000, "quiet_until": 0})
    assert (await transitions.sweep(LEASE, may_end_leases=True, readable=READABLE)).lapsed == 1
    [owner] = await transitions.claim("owner", "c2", LEASE, 1, READABLE)
    return stale, owner


async def everything(redis: Redis) -> dict[bytes, Any]:
    """All that is stored."""
    return {key: await redis.dump(key) for key in sorted(await redis.keys("*"))}


async def stale_write_lands(redis: Redis, script: Script, scripts: Scripts) -> bool:
    """Whether anything at all changed by the write of an owner that is one no more."""
    stale, _ = await two_owners(redis)
    before = await everything(redis)
    with_them = Transitions(redis, scripts), JournalStore(redis, scripts)
    try:
        await WRITES[script](*with_them, stale)
    except OwnershipLost:
        assert await everything(redis) == before
        return False
    return await everything(redis) != before


@pytest.mark.parametrize("script", WRITES)
async def test_a_stale_write_changes_nothing(redis: Redis, script: Script) -> None:
    assert not await stale_write_lands(redis, script, Scripts(redis))


@pytest.mark.parametrize("script", WRITES)
async def test_without_its_check_a_stale_write_lands(redis: Redis, script: Script) -> None:
    assert await stale_write_lands(redis, script, WithoutFence(redis, script))
