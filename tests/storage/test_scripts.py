"""The scripts as scripts: their keys, their loading, and what is left when a call inside one fails."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from posthouse.errors import NotFound, OwnershipLost, StorageUnavailable
from posthouse.events.types import Draft, MessageCompleted, RunCompleted, RunCreated, RunWaiting
from posthouse.ids import new_run_id
from posthouse.journal.model import Wait
from posthouse.journal.store import JournalStore, Record
from posthouse.llm.breaker import Breaker, BreakerPolicy, Endpoint, Gate, Sign, Standing
from posthouse.runs.model import SCHEMA_VERSION, Status
from posthouse.runs.ownership import Claimed, Lease
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys
from posthouse.storage.connect import connect
from posthouse.storage.scripts import Script, Scripts, source

READABLE = [("echo", 1)]
DONE = Ending(Status.COMPLETED, Draft(event=RunCompleted()), "{}")
SAID = Draft(event=MessageCompleted(text="hi", length=2))


async def test_lua_and_python_name_the_same_keys(redis: Redis) -> None:
    names = (
        "run('r')", "journal('r')", "starts('r')", "events('r')", "blob('r','d')", "blobs('r')", "waits('r')",
        "tree('r')", "prompts('r')", "idempotency('t','k')", "index('t')", "index('t','s')", "worker('w')",
        "held('f','1')", "claims('c')", "archive('r')", "lost('w')", "endpoint('d')",
        "schedule('s')", "schedules_of('t')",
    )  # fmt: skip
    prelude = source(Script.DELETE).split("\nlocal id, tenant")[0]
    fixed = "KEY.due,KEY.queue,KEY.wake,KEY.sweep,KEY.counter,KEY.drained,KEY.workers,KEY.all_held,KEY.schedules"
    fixed += ",KEY.later"
    listed = ",".join(f"KEY.{name}" for name in names)
    reply = await redis.eval(f"{prelude}\nreturn {{{fixed},{listed}}}", 0)
    assert [name.decode() for name in reply] == [
        keys.DUE, keys.QUEUE, keys.WAKE, keys.SWEEP, keys.COUNTER, keys.DRAINED, keys.WORKERS, keys.HELD,
        keys.SCHEDULES, keys.LATER,
        keys.run("r"), keys.journal("r"), keys.starts("r"), keys.events("r"), keys.blob("r", "d"), keys.blobs("r"),
        keys.waits("r"), keys.tree("r"), keys.prompts("r"), keys.idempotency("t", "k"), keys.index("t"),
        keys.index("t", "s"), keys.worker("w"), keys.held("f", "1"), keys.claims("c"),
        keys.archive("r"), keys.lost("w"), keys.endpoint("d"), keys.schedule("s"), keys.schedules_of("t"),
    ]  # fmt: skip


def test_lua_and_python_know_the_same_form_of_a_record() -> None:
    assert f"\nlocal SCHEMA = {SCHEMA_VERSION}\n" in source(Script.SWEEP)


async def test_a_server_that_forgot_the_scripts_is_told_them_again(redis: Redis) -> None:
    scripts = Scripts(redis)
    for _ in range(2):
        await redis.script_flush()
        assert await scripts.call(Script.DELETE, "nobody", "default") == [b"missing"]
        digest = hashlib.sha1(source(Script.DELETE).encode()).hexdigest()
        assert await redis.script_exists(digest) == [True]


async def test_a_full_redis_refuses_new_runs_and_lets_running_ones_end(valkey: Any) -> None:
    redis = connect(valkey.url)
    transitions = Transitions(redis)
    await transitions.accept(run := acceptance())
    await redis.config_set("maxmemory", "1")
    with pytest.raises(StorageUnavailable):
        await transitions.accept(acceptance())
    assert await redis.zcard(keys.index("default")) == 1
    [claimed] = await transitions.claim("w", "c", 60_000, 10, READABLE)
    await JournalStore(redis).commit(claimed, claimed.seq, Record("s", b'{"result":1}'))
    await transitions.finish(claimed, claimed.seq, DONE)
    await transitions.delete(run.run_id, "default")
    assert await redis.zcard(keys.index("default")) == 0
    await redis.aclose()


def acceptance(key: str = "") -> Acceptance:
    created = Draft(event=RunCreated(workflow="echo", version=1))
    return Acceptance(
        new_run_id(), "default", "echo", 1, "{}", "{}", created, 60_000, idempotency_key=key, fingerprint="f"
    )  # fmt: skip


def failing_at(text: str, call: int) -> str:
    """The script with its n-th call to Redis failing, as one on a key of the wrong type does."""
    flags, _, body = text.partition("\n")
    return f"""{flags}
local real, calls = redis, 0
local redis = {{}}
function redis.call(...)
  calls = calls + 1
  if calls == {call} then error('planted') end
  return real.call(...)
end
function redis.pcall(...)
  calls = calls + 1
  if calls == {call} then return {{ err = 'planted' }} end
  return real.pcall(...)
end
redis.sha1hex = real.sha1hex
{body}"""


class FaultyScripts(Scripts):
    """Fails one call inside one script, once."""

    def __init__(self, redis: Redis, script: Script, call: int) -> None:
        super().__init__(redis)
        self._client = redis
        self._script, self._call, self.struck = script, call, False

    async def call(self, script: Script, *arguments: str | int | bytes) -> list[Any]:
        if script is self._script and not self.struck:
            self.struck = True
            text = failing_at(source(script), self._call)
            return list(await self._client.eval(text, 0, *arguments))
        return await super().call(script, *arguments)


async def again(call: Callable[[], Awaitable[Any]]) -> Any:
    """The call, made once more when it failed, as its caller does."""
    try:
        return await call()
    except (ResponseError, NotFound):  # a record that cannot be read is none
        return await call()


class Fleet:
    """A run's whole life with one script failing once; each call is repeated as its real caller would."""

    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self.redis = redis
        self.transitions, self.journal = Transitions(redis, scripts), JournalStore(redis, scripts)
        self.claims = 0

    async def sweep(self) -> None:
        for run_id in await self.redis.zrange(keys.DUE, 0, -1):
            await self.redis.zadd(keys.DUE, {run_id: 1})
        seconds, _ = await self.redis.time()
        await self.redis.hset(keys.SWEEP, mapping={"last": (seconds + 5) * 1000, "quiet_until": 0})
        await again(lambda: self.transitions.sweep(60_000, may_end_leases=True, readable=READABLE))

    async def claim(self) -> Claimed:
        for _ in range(5):
            self.claims += 1
            claimed = await again(
                lambda: self.transitions.claim("w", f"c{self.claims}", 60_000, 10, READABLE)
            )
            if claimed:
                return claimed[0]
            for run_id in await self.redis.zrange(keys.DUE, 0, -1):
                await self.redis.hset(keys.run(run_id.decode()), "lease", 1)
            await self.sweep()
        pytest.fail("the run is in the queue no more")

    async def live(self) -> str:
        """Accept, a step, a nap, a release, a suspect's crash, cancel and retry, the end.

        Whatever loses its ownership claims again.
        """
        run = acceptance(key="k")
        await again(lambda: self.transitions.accept(run))
        parts = (self.first_part, self.second_part, self.third_part, self.last_part)
        for part in parts:
            for _ in range(4):
                claimed = await self.claim()
                try:
                    await part(claimed)
                    break
                except OwnershipLost:
                    continue
            else:
                pytest.fail("it never got through")
        return run.run_id

    async def first_part(self, run: Claimed) -> None:
        await again(lambda: self.journal.start(run, run.seq, steps=["a"], events=[SAID]))
        record = Record("a", b'{"result":1}', events=(SAID,), opens=("b",))
        await again(lambda: self.journal.commit(run, run.seq, record))
        event, wait = (
            Draft(event=RunWaiting(wait_reason="timer")),
            Wait("nap", "timer", 0, '{"result":null}'),
        )
        await again(
            lambda: self.journal.park(
                run, run.seq, status="running", reason="timer", event=event, waits=[wait]
            )
        )
        await self.sweep()

    async def second_part(self, run: Claimed) -> None:
        lease = Lease(run.run_id, run.fence, run.seq)
        if await again(lambda: self.transitions.heartbeat("w", 60_000, {"pid": 1}, [lease])):
            raise OwnershipLost
        await again(lambda: self.transitions.release(run, run.seq))

    async def third_part(self, run: Claimed) -> None:
        await again(lambda: self.transitions.isolate(run))
        await again(lambda: self.transitions.crash(run))
        await again(lambda: self.transitions.cancel(run.run_id, "default"))
        seen = int(await self.redis.hget(keys.run(run.run_id), "seq"))
        await again(lambda: self.transitions.retry(run.run_id, "default", seen, ["b"]))

    async def last_part(self, run: Claimed) -> None:
        await again(lambda: self.transitions.finish(run, run.seq, DONE))


OF_SCHEDULES = (Script.SCHEDULE, Script.UNSCHEDULE, Script.FIRE)  # tests/schedules has these
OF_TREES = (
    Script.SPAWN,
    Script.ASK,
    Script.ANSWER,
    Script.RESERVE,
    Script.EXTEND,
)  # in test_tree_scripts.py
OF_ENDPOINTS = (Script.ADMIT, Script.REPORT, Script.PACE)
NOT_OF_A_LIFE = (Script.DELETE, Script.DOCTOR, *OF_ENDPOINTS, *OF_SCHEDULES, *OF_TREES)


@pytest.mark.guarantee("G1")
@pytest.mark.parametrize("script", [script for script in Script if script not in NOT_OF_A_LIFE])
async def test_a_failed_call_inside_a_script_loses_no_run(script: Script, redis: Redis) -> None:
    for call in range(1, 60):
        await redis.flushall()
        scripts = FaultyScripts(redis, script, call)
        fleet = Fleet(redis, scripts)
        where = f"{script}, call {call}"
        run_id = await fleet.live()
        status = await redis.hget(keys.run(run_id), "status")
        entries = await redis.xrange(keys.events(run_id))
        seqs = [int(entry.split(b"-")[0]) for entry, _ in entries]
        ends = [fields for _, fields in entries if fields[b"type"] == b"run.completed"]
        waits = [fields for _, fields in entries if fields[b"type"] == b"run.waiting"]
        assert status == b"completed", where
        assert seqs == list(range(1, len(seqs) + 1)), where
        assert len(ends) == 1, where
        kinds = [fields[b"type"] for _, fields in entries]
        assert (kinds.count(b"run.cancelled"), kinds.count(b"run.retried")) == (1, 1), where
        assert len(waits) == 1, where
        assert await redis.hexists(keys.journal(run_id), "a"), where
        await fleet.sweep()
        assert await redis.zcard(keys.QUEUE) == 0, where
        assert scripts.struck


@pytest.mark.parametrize("sign", Sign)
@pytest.mark.parametrize("script", [Script.ADMIT, Script.REPORT])
async def test_a_failed_call_inside_a_script_leaves_the_breaker_sound(
    script: Script, sign: Sign, redis: Redis
) -> None:
    where = Endpoint.at("http://model/v1")
    key = keys.endpoint(where.digest)
    opens = {Sign.ALIVE: None, Sign.FAILED: b"2", Sign.DROPPED: b"1"}[sign]

    async def report(call: int, token: str, sign: Sign) -> Standing:
        faulty = Breaker(redis, policy, scripts=FaultyScripts(redis, script, call))
        return await again(lambda: faulty.report(where, token, sign))

    async def admit(call: int, token: str) -> Gate:
        faulty = Breaker(redis, policy, scripts=FaultyScripts(redis, script, call))
        return (await again(lambda: faulty.admit(where, token))).gate

    policy = BreakerPolicy(failures=2, span=0)
    for call in range(1, 7):
        await redis.flushall()
        assert not (await report(call, "a", Sign.FAILED)).open, call
        opened = await report(call, "b", Sign.FAILED)
        assert (opened.open, opened.turned) == (True, True), call
        assert await admit(call, "c") is Gate.OPEN, call
        await redis.hset(key, "open_until", 1)
        assert await admit(call, "c") is Gate.PROBE, call
        assert await admit(call, "d") is Gate.OPEN, call
        assert 0 < await redis.pttl(key) <= 3_600_000, call
        assert (await report(call, "c", sign)).open is (sign is not Sign.ALIVE), call
        assert await redis.hget(key, "opens") == opens, call
        assert await redis.exists(key) == (sign is not Sign.ALIVE), call
        assert await redis.pttl(key) != -1, call
