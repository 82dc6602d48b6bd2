"""Trees of runs on a real Redis, one deed after another; for tests that say themselves what must follow."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

from redis.asyncio import Redis

from posthouse.control.doctor import Doctor
from posthouse.control.doctor import Kind as Amiss
from posthouse.events.types import Draft, RunCompleted, RunCreated, RunWaiting
from posthouse.events.types import RunFailed as RunFailedEvent
from posthouse.ids import new_run_id, new_token
from posthouse.inputs.model import Answer, Decision, Kind, OnTimeout, Question, Request
from posthouse.inputs.store import InputRequest, Inputs
from posthouse.journal.model import Wait
from posthouse.journal.store import JournalStore, Spawn
from posthouse.runs.model import Status
from posthouse.runs.ownership import Claimed
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys
from posthouse.storage.scripts import Script, Scripts, source

Limits: TypeAlias = Sequence[tuple[str, str | int]]
READABLE = [("echo", 1)]
LEASE, TTL = 60_000, 60_000
CREATED = Draft(event=RunCreated(workflow="echo", version=1))
DONE = Ending(Status.COMPLETED, Draft(event=RunCompleted()), '{"n":1}')
PROBLEM = RunFailedEvent(code="fatal", message="no", retryable=False)
FAILED = Ending(Status.FAILED, Draft(event=PROBLEM), "", '{"code":"fatal"}')
NAP = Wait("nap", "timer", 3_600_000, '{"result":null}')


def said(value: str) -> Answer:
    return Answer(decision=Decision.RESPOND, value=value)


BREAKING = """
local real, calls = redis, 0
local redis = setmetatable({}, { __index = real })
function redis.call(...)
  calls = calls + 1
  if calls == %d then error('planted') end
  return real.call(...)
end
"""


class BreakingScripts(Scripts):
    """The scripts as they are, but that the n-th call to Redis in the next one of its kind fails."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.next: tuple[Script, int] | None = None

    async def call(self, script: Script, *arguments: str | int | bytes) -> list[Any]:
        if self.next is None or self.next[0] is not script:
            return await super().call(script, *arguments)
        number, self.next = self.next[1], None
        flags, _, rest = source(script).partition("\n")
        return list(await self._redis.eval(f"{flags}\n{BREAKING % number}\n{rest}", 0, *arguments))


class Grove:
    """Trees of runs on one Redis, and whoever works on them."""

    def __init__(self, redis: Redis) -> None:
        self.redis, self.scripts = redis, BreakingScripts(redis)
        self.transitions = Transitions(redis, self.scripts)
        self.journal = JournalStore(redis, self.scripts)
        self.inputs = Inputs(redis, self.scripts)

    async def root(self, **more: Any) -> Claimed:
        """A root that somebody owns."""
        run = Acceptance(*(new_run_id(), "default", "echo", 1, "{}", "{}", CREATED, TTL), **more)
        await self.transitions.accept(run)
        return await self.claim(run.run_id)

    async def claim(self, run_id: str) -> Claimed:
        dispatch = await self.field(run_id, "dispatch")
        [run] = await self.transitions.claim(
            "w", new_token(), LEASE, 1, READABLE, job=f"{run_id}:{dispatch}"
        )
        return run

    async def spawn(self, run: Claimed, key: str = "x", former: str = "") -> str:
        child = new_run_id()
        text = b'{"result":"%b"}' % child.encode()
        spawn = Spawn(key, f"{key}/end", child, text, key, "echo", 1, "{}", CREATED, former)
        await self.journal.spawn(run, 0, spawn)
        return child

    async def ask(self, run: Claimed, key: str = "q", *, expires: bool = True) -> InputRequest:
        how = OnTimeout.REJECT if expires else OnTimeout.WAIT
        request = Request(kind=Kind.QUESTION, question="?", on_timeout=how)
        await self.journal.ask(run, 0, Question(key, request, 3600 if expires else None), "")
        return next(
            one for one in await self.inputs.open_in(run.root, "default") if one.step == key
        )

    async def park(self, run: Claimed, *waits: Wait) -> int | None:
        event = Draft(event=RunWaiting(wait_reason="children"))
        kinds = {wait.kind for wait in waits}
        status = "awaiting_input" if "input" in kinds else "running"
        return await self.journal.park(
            run, 0, status=status, reason="children", event=event, waits=waits
        )

    async def ring(self, run_id: str, key: str) -> None:
        """The time of a wait is over, and somebody looks."""
        await self.time_is_over(run_id, key)
        await self.sweep()

    async def time_is_over(self, run_id: str, key: str) -> None:
        if (wait := await self.redis.hget(keys.waits(run_id), key)) is not None:
            await self.redis.hset(keys.waits(run_id), key, b"1|" + wait.partition(b"|")[2])
        await self.is_due(run_id)

    async def is_due(self, run_id: str) -> None:
        await self.redis.zadd(keys.DUE, {run_id: 1})
        seconds, _ = await self.redis.time()
        await self.redis.hset(keys.SWEEP, mapping={"last": seconds * 1000, "quiet_until": 0})

    async def look(self, run_id: str) -> None:
        await self.is_due(run_id)
        await self.sweep()

    async def sweep(self) -> None:
        swept = await self.transitions.sweep(LEASE, may_end_leases=True, readable=READABLE)
        assert swept.broken == 0

    async def finish(self, run_id: str, ending: Ending = DONE) -> None:
        await self.transitions.finish(await self.claim(run_id), 0, ending)

    async def retry(self, root: str, again: list[str], *children: str, limits: Limits = ()) -> None:
        seen = int(await self.field(root, "seq"))
        rows = [(child, []) for child in children]
        await self.transitions.retry(root, "default", seen, again, rows, limits)

    async def field(self, run_id: str, name: str) -> str:
        return str((await self.redis.hget(keys.run(run_id), name) or b"").decode())

    async def queued(self, run_id: str) -> bool:
        job = f"{run_id}:{await self.field(run_id, 'dispatch')}"
        return await self.redis.zscore(keys.QUEUE, job) is not None

    async def kinds(self, run_id: str) -> Counter[str]:
        entries = await self.redis.xrange(keys.events(run_id))
        assert [int(n.split(b"-")[0]) for n, _ in entries] == list(range(1, len(entries) + 1))
        return Counter(fields[b"type"].decode() for _, fields in entries)

    async def outcome(self, run_id: str, key: str) -> Any:
        return (await self.journal.load(run_id)).outcomes[key].result

    async def sound(self, *allowed: Amiss) -> None:
        looked = await Doctor(self.redis, grace_seconds=0).examine()
        found = [one for one in looked if one.kind not in allowed]
        assert not found, [(one.kind.value, one.key, one.member) for one in found]


def child_of(run: str, key: str = "x") -> Wait:
    return Wait(f"{key}/end", "child", None, run)


ASKED = Wait("q", "input", None)
