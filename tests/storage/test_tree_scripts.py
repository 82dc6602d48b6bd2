"""Every script of a tree of runs, with each of its Redis calls failing once: the tree ends as it would have."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from posthouse.budget.model import Budget, Reservation
from posthouse.errors import NotFound, OwnershipLost
from posthouse.events.types import Draft, RunCompleted, RunCreated, RunWaiting
from posthouse.ids import new_run_id
from posthouse.inputs.model import Answer, Decision, Kind, Question, Request
from posthouse.inputs.store import Inputs
from posthouse.journal.model import Usage, Wait
from posthouse.journal.store import JournalStore, Record, Spawn
from posthouse.runs.model import Status
from posthouse.runs.ownership import Claimed
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys
from posthouse.storage.scripts import Script, Scripts, source

T = TypeVar("T")

READABLE = [("echo", 1)]
CREATED = Draft(event=RunCreated(workflow="echo", version=1))
DONE = Ending(Status.COMPLETED, Draft(event=RunCompleted()), '"out"')
LEASE = 60_000
ASKED = Question("ask", Request(kind=Kind.QUESTION, question="Which?"))
SAID = Answer(decision=Decision.RESPOND, value="this")
FAILING = """
local real, calls = redis, 0
local function planted()
  calls = calls + 1
  return calls == %d and real.call('SETNX', 'struck', '1') == 1
end
local redis = setmetatable({
  call = function(...)
    if planted() then error('planted') end
    return real.call(...)
  end,
  pcall = function(...)
    if planted() then return { err = 'planted' } end
    return real.pcall(...)
  end,
}, { __index = real })
"""


class FailingOnce(Scripts):
    """The scripts as they are, but for one call inside one of them, which fails once."""

    def __init__(self, redis: Redis, script: Script, call: int) -> None:
        super().__init__(redis)
        self._client, self._script = redis, script
        flags, _, rest = source(script).partition("\n")
        self._text = f"{flags}\n{FAILING % call}\n{rest}"

    async def call(self, script: Script, *arguments: str | int | bytes) -> list[Any]:
        if script is not self._script:
            return await super().call(script, *arguments)
        return list(await self._client.eval(self._text, 0, *arguments))


async def again(call: Callable[[], Awaitable[T]]) -> T:
    """The call, made once more when it failed, as its caller does."""
    try:
        return await call()
    except (ResponseError, NotFound):
        return await call()


class Tree:
    """A root that reserves, asks and spawns, and its child; with the calls repeated as real callers would."""

    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self.redis = redis
        self.transitions, self.journal = Transitions(redis, scripts), JournalStore(redis, scripts)
        self.inputs = Inputs(redis, scripts)
        budget = tuple(Budget(tokens=1000).rows())
        self.root = Acceptance(
            *(new_run_id(), "default", "echo", 1, "{}", "{}", CREATED), ttl_ms=60_000, budget=budget
        )
        self.child = new_run_id()

    async def live(self) -> None:
        await again(lambda: self.transitions.accept(self.root))
        for turn in range(12):
            for claimed in await self.claim(turn):
                try:
                    await (self.as_root if claimed.run_id == self.root.run_id else self.as_child)(
                        claimed
                    )
                except OwnershipLost:
                    continue
            if await self.status(self.root.run_id) == "completed":
                return
            await self.answer()
            await self.sweep()
        pytest.fail("the tree never ended")

    async def status(self, run_id: str) -> str:
        return str((await self.redis.hget(keys.run(run_id), "status")).decode())

    async def claim(self, turn: int) -> list[Claimed]:
        return await again(lambda: self.transitions.claim("w", f"c{turn}", LEASE, 10, READABLE))

    async def sweep(self) -> None:
        for run_id in await self.redis.zrange(keys.DUE, 0, -1):
            await self.redis.zadd(keys.DUE, {run_id: 1})
            await self.redis.hset(keys.run(run_id.decode()), "lease", 1)
        seconds, _ = await self.redis.time()
        await self.redis.hset(keys.SWEEP, mapping={"last": (seconds + 5) * 1000, "quiet_until": 0})
        await again(lambda: self.transitions.sweep(LEASE, may_end_leases=True, readable=READABLE))

    async def answer(self) -> None:
        for asked in await self.inputs.open_in(self.root.run_id, "default"):
            await again(lambda one=asked: self.inputs.answer(one, "default", SAID))

    async def as_root(self, run: Claimed) -> None:
        done = (await self.journal.load(run.run_id)).outcomes
        if "paid" not in done:
            wanted = Reservation("paid", input_tokens=10, most=100, least=1, model_calls=1)
            await again(lambda: self.journal.reserve(run, run.seq, wanted))
            await again(lambda: self.journal.extend(run, run.seq, "paid", {"tokens": 500}))
            paid = Record("paid", b'{"result":1}', usage=Usage(model_calls=1, input_tokens=10))
            await again(lambda: self.journal.commit(run, run.seq, paid))
        if "child" not in done:
            spawn = Spawn(
                *(
                    "child",
                    "child/end",
                    self.child,
                    b'{"result":1}',
                    "one",
                    "echo",
                    1,
                    "{}",
                    CREATED,
                )
            )
            await again(lambda: self.journal.spawn(run, run.seq, spawn))
        waits = [Wait("child/end", "child", None, self.child), Wait("ask", "input", None)]
        if "ask" not in done:
            await again(lambda: self.journal.ask(run, run.seq, ASKED, ""))
        if waits := [wait for wait in waits if wait.key not in done]:
            event = Draft(event=RunWaiting(wait_reason="input"))
            await again(
                lambda: self.journal.park(
                    run, run.seq, status="running", reason="input", event=event, waits=waits
                )
            )
            return
        await again(lambda: self.transitions.finish(run, run.seq, DONE))

    async def as_child(self, run: Claimed) -> None:
        await again(lambda: self.transitions.finish(run, run.seq, DONE))


@pytest.mark.guarantee("G1")
@pytest.mark.parametrize(
    "script",
    [
        *(Script.SPAWN, Script.ASK, Script.ANSWER, Script.RESERVE, Script.EXTEND, Script.PARK),
        *(Script.FINISH, Script.COMMIT, Script.CLAIM),
    ],
)
async def test_a_failed_call_inside_a_script_loses_no_tree(script: Script, redis: Redis) -> None:
    for call in range(1, 120):
        await redis.flushall()
        tree, where = Tree(redis, FailingOnce(redis, script, call)), f"{script}, call {call}"
        async with asyncio.timeout(20):
            await tree.live()
        assert await tree.status(tree.child) == "completed", where
        entries = await redis.xrange(keys.events(tree.root.run_id))
        kinds = [fields[b"type"] for _, fields in entries]
        seqs = [int(entry.split(b"-")[0]) for entry, _ in entries]
        assert seqs == list(range(1, len(seqs) + 1)), where
        assert kinds[-1] == b"run.completed", where
        assert kinds.count(b"run.completed") == 1, where
        outcomes = (await JournalStore(redis).load(tree.root.run_id)).outcomes
        assert outcomes["child/end"].result["output"] == "out", where
        assert outcomes["ask"].result["value"] == "this", where
        assert await redis.keys("inputs:*") == [], where
        assert await redis.smembers(keys.tree(tree.root.run_id)) == {tree.child.encode()}, where
        budget = await redis.hgetall(keys.budget(tree.root.run_id))
        assert budget[b"limit_tokens"] == b"1500", where
        assert int(budget[b"reserved_tokens"]) == 0, where
        await tree.sweep()
        assert await redis.zcard(keys.QUEUE) == 0, where
        if not await redis.exists("struck"):
            return
    pytest.fail("more calls than were tried")
