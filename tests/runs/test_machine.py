"""Any order of transitions, repeats and crashes against a model: what must always hold, holds."""

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from posthouse.errors import Conflict, NotFound, OwnershipLost
from posthouse.events.types import (
    Draft,
    MessageCompleted,
    RunCompleted,
    RunCreated,
    RunFailed,
    RunIncomplete,
    RunWaiting,
)
from posthouse.ids import new_run_id, new_token
from posthouse.journal.model import Wait
from posthouse.journal.store import JournalStore, Record
from posthouse.runs.model import TERMINAL, Status
from posthouse.runs.ownership import Claimed, Lease
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys
from posthouse.storage.connect import connect

READABLE = [("echo", 1)]
LEASE = 60_000
TTL = 60_000
SUSPECT_AFTER, HOPELESS = 2, 10  # sweep.lua has the same
SAID = Draft(event=MessageCompleted(text="hi", length=2))
CREATED = Draft(event=RunCreated(workflow="echo", version=1))
WRONG = {"code": "fatal", "message": "no", "retryable": False}
ENDINGS = (
    Ending(Status.COMPLETED, Draft(event=RunCompleted()), "{}"),
    Ending(Status.FAILED, Draft(event=RunFailed(**WRONG)), "", "{}"),
    Ending(Status.INCOMPLETE, Draft(event=RunIncomplete(code="max_iterations", message="no"))),
)
LEGAL = {
    Status.PENDING: {Status.RUNNING, Status.FAILED, Status.CANCELLED},
    Status.RUNNING: TERMINAL,
    **{end: {Status.PENDING} for end in TERMINAL - {Status.COMPLETED}},
}
END_EVENTS = {f"run.{status}".encode() for status in TERMINAL}


@dataclass
class Expected:
    """What the model knows of a run."""

    status: Status = Status.PENDING
    committed: set[str] = field(default_factory=set)
    fence: str | None = None
    crashes: int = 0
    isolated: str | None = None
    retries: int = 0
    poisoned: bool = False
    parked: bool = False
    later: bool = False
    seen: Status = Status.PENDING

    @property
    def ended(self) -> bool:
        """Whether it has an end for now."""
        return self.status in TERMINAL

    @property
    def waits(self) -> bool:
        """Whether it waits in the queue, unless somebody owns it."""
        return not (self.ended or self.parked or self.later)

    def end(self, status: Status) -> None:
        """It has one."""
        self.status, self.fence, self.parked, self.later = status, None, False, False

    def crash(self, limit: int) -> None:
        """Its owner died, and it may have been the cause."""
        self.crashes, self.fence = self.crashes + 1, None
        if self.crashes >= limit:
            self.poisoned = True
            self.end(Status.FAILED)

    def lapse(self) -> None:
        """Its owner was not heard of: one that still waited to be isolated has done nothing."""
        if self.crashes < SUSPECT_AFTER or self.isolated == self.fence:
            self.crash(HOPELESS)
        self.fence = None


class RunsMachine(RuleBasedStateMachine):
    """The transitions of a few runs, by workers that may be stale."""

    url = ""
    claims = Bundle("claims")
    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = connect(self.url)
        self.transitions = Transitions(self.redis)
        self.journal = JournalStore(self.redis)
        self.model: dict[str, Expected] = {}
        self.do(self.redis.flushall())

    def do(self, call: Any) -> Any:
        return self.runner.run(call if asyncio.iscoroutine(call) else _awaited(call))

    def teardown(self) -> None:
        self.do(self.redis.aclose())
        self.runner.close()

    def current(self, claim: Claimed) -> bool:
        expected = self.model.get(claim.run_id)
        return expected is not None and expected.fence == claim.fence

    @rule(target=runs, times=st.integers(1, 2), later=st.booleans(), timeout=st.booleans())
    def accept(self, times: int, later: bool, timeout: bool) -> Any:
        if len(self.model) >= 4:
            return multiple()
        seconds, _ = self.do(self.redis.time())
        run = Acceptance(
            *(new_run_id(), "default", "echo", 1, "{}", "{}", CREATED, TTL),
            not_before_ms=(seconds + 1000) * 1000 if later else 0,
            timeout_ms=3_600_000 if timeout else 0,
        )
        for _ in range(times):
            self.do(self.transitions.accept(run))
        self.model[run.run_id] = Expected(later=later)
        return run.run_id

    @rule(target=claims, repeated=st.booleans())
    def claim(self, repeated: bool) -> Any:
        token = new_token()
        found = self.do(self.transitions.claim("w", token, LEASE, 1, READABLE))
        if repeated:
            again = self.do(self.transitions.claim("w", token, LEASE, 1, READABLE))
            assert [replace(run, claimed_at=0, queued_at=0) for run in again] == [
                replace(run, claimed_at=0, queued_at=0) for run in found
            ]
        if not found:
            return multiple()
        expected = self.model[found[0].run_id]
        assert expected.fence is None
        assert expected.waits
        assert found[0].crashes == expected.crashes
        expected.fence, expected.status = found[0].fence, Status.RUNNING
        return found[0]

    @rule(claim=claims, step=st.sampled_from("abc"), times=st.integers(1, 2))
    def commit(self, claim: Claimed, step: str, times: int) -> None:
        for _ in range(times):
            with self.refused_if_stale(claim):
                known = self.current(claim) and step in self.model[claim.run_id].committed
                self.do(
                    self.journal.commit(claim, 0, Record(step, b'{"result":1}', events=(SAID,)))
                )
                self.model[claim.run_id].committed.add(step)
                if not known:
                    self.model[claim.run_id].crashes = 0

    @rule(claim=claims, step=st.sampled_from("abc"))
    def start(self, claim: Claimed, step: str) -> None:
        with self.refused_if_stale(claim):
            self.do(self.journal.start(claim, 0, steps=[step], events=[SAID]))

    @rule(claim=claims)
    def heartbeat(self, claim: Claimed) -> None:
        leases = [Lease(claim.run_id, claim.fence, 0)]
        lost = self.do(self.transitions.heartbeat("w", LEASE, {"pid": 1}, leases))
        assert lost == ([] if self.current(claim) else leases)

    @rule(claim=consumes(claims), after=st.sampled_from([0, 3_600_000, None]))
    def park(self, claim: Claimed, after: int | None) -> None:
        wait = Wait("nap", "timer", after, '{"result":null}')
        event = Draft(event=RunWaiting(wait_reason="timer"))
        with self.refused_if_stale(claim):
            self.do(
                self.journal.park(
                    claim, 0, status="running", reason="timer", event=event, waits=[wait]
                )
            )
            self.model[claim.run_id].fence = None
            self.model[claim.run_id].parked = True

    @rule(claim=consumes(claims))
    def release(self, claim: Claimed) -> None:
        self.do(self.transitions.release(claim, 0))
        if self.current(claim):
            self.model[claim.run_id].fence = None

    @rule(claim=consumes(claims), ending=st.sampled_from(ENDINGS), times=st.integers(1, 2))
    def finish(self, claim: Claimed, ending: Ending, times: int) -> None:
        with self.refused_if_stale(claim):
            for _ in range(times):
                self.do(self.transitions.finish(claim, 0, ending))
            self.model[claim.run_id].end(ending.status)

    @rule(claim=claims, times=st.integers(1, 2))
    def isolate(self, claim: Claimed, times: int) -> None:
        with self.refused_if_stale(claim):
            for _ in range(times):
                self.do(self.transitions.isolate(claim))
            self.model[claim.run_id].isolated = claim.fence

    @rule(claim=consumes(claims), times=st.integers(1, 2))
    def crash(self, claim: Claimed, times: int) -> None:
        with self.refused_if_stale(claim):
            verdicts = {self.do(self.transitions.crash(claim)) for _ in range(times)}
            self.model[claim.run_id].crash(limit=3)
            assert verdicts == {self.model[claim.run_id].poisoned}

    @rule(run_id=runs)
    def cancel(self, run_id: str) -> None:
        expected = self.model.get(run_id)
        if expected is None or expected.status is Status.CANCELLED:
            return
        try:
            self.do(self.transitions.cancel(run_id, "default"))
        except Conflict:
            assert expected.ended
        else:
            assert not expected.ended
            expected.end(Status.CANCELLED)

    @rule(run_id=runs, aside=st.sets(st.sampled_from("abc")), times=st.integers(1, 2))
    def retry(self, run_id: str, aside: set[str], times: int) -> None:
        expected = self.model.get(run_id)
        if expected is None or not expected.ended:
            return
        seen = int(self.do(self.redis.hget(keys.run(run_id), "seq")))
        try:
            for _ in range(times):
                self.do(self.transitions.retry(run_id, "default", seen, sorted(aside)))
        except Conflict:
            assert expected.status is Status.COMPLETED
            return
        kept, retries = expected.committed - aside, expected.retries + 1
        self.model[run_id] = Expected(committed=kept, retries=retries, seen=expected.seen)

    @rule(run_id=runs)
    def delete(self, run_id: str) -> None:
        expected = self.model.get(run_id)
        try:
            self.do(self.transitions.delete(run_id, "default"))
        except Conflict:
            assert expected is not None
            assert not expected.ended
        except NotFound:
            assert expected is None
        else:
            assert self.model.pop(run_id).ended
            assert self.do(self.redis.keys(f"run:{run_id}*")) == []

    @rule(claim=claims)
    def lapse(self, claim: Claimed) -> None:
        if self.current(claim):
            self.do(self.redis.hset(keys.run(claim.run_id), "lease", 1))
            self.model[claim.run_id].lapse()
            self.sweep(claim.run_id)

    @rule(run_id=runs)
    def time_is_over(self, run_id: str) -> None:
        expected = self.model.get(run_id)
        if expected is None or expected.ended:
            return
        self.do(self.redis.hset(keys.run(run_id), "deadline", 1))
        expected.end(Status.FAILED)
        self.sweep(run_id)

    @rule(run_id=runs)
    def time_has_come(self, run_id: str) -> None:
        expected = self.model.get(run_id)
        if expected is not None and expected.later:
            self.do(self.redis.hset(keys.run(run_id), "not_before", 1))
            expected.later = False
            self.sweep(run_id)

    @rule(run_id=runs)
    def timers_ring(self, run_id: str) -> None:
        expected = self.model.get(run_id)
        if expected is None or not expected.parked:
            return
        wait = self.do(self.redis.hget(keys.waits(run_id), "nap"))
        self.do(self.redis.hset(keys.waits(run_id), "nap", b"1|" + wait.partition(b"|")[2]))
        expected.parked = False
        self.sweep(run_id)

    @rule()
    def lose_queue_entry(self) -> None:
        for job in self.do(self.redis.zrange(keys.QUEUE, 0, 0)):
            self.do(self.redis.zrem(keys.QUEUE, job))
            self.sweep(job.decode().split(":")[0])

    @rule()
    def look_at_everything(self) -> None:
        self.sweep(*self.do(self.redis.zrange(keys.DUE, 0, -1)))

    def sweep(self, *run_ids: str | bytes) -> None:
        for run_id in run_ids:
            self.do(self.redis.zadd(keys.DUE, {run_id: 1}))
        seconds, _ = self.do(self.redis.time())
        self.do(self.redis.hset(keys.SWEEP, mapping={"last": seconds * 1000, "quiet_until": 0}))
        swept = self.do(self.transitions.sweep(LEASE, may_end_leases=True, readable=READABLE))
        assert swept.broken == swept.purged == 0
        # A timer of no length rings at the first look.
        for run_id, expected in self.model.items():
            stored = self.do(self.redis.hmget(keys.run(run_id), "parked_at", "dispatch"))
            expected.parked = expected.parked and stored[0] == stored[1]

    @contextlib.contextmanager
    def refused_if_stale(self, claim: Claimed) -> Any:
        current = self.current(claim)
        try:
            yield
        except OwnershipLost:
            assert not current
        else:
            assert current

    @invariant()
    def everything_agrees(self) -> None:
        self.do(self.check())

    async def check(self) -> None:
        queue = {job.decode() for job in await self.redis.zrange(keys.QUEUE, 0, -1)}
        arq = {key.decode().split(":", 2)[2] for key in await self.redis.keys("arq:*:*")}
        assert queue == arq
        assert len(queue) == sum(
            [
                await self.check_run(run_id, expected, queue)
                for run_id, expected in self.model.items()
            ]
        )
        dead = {
            run.decode() for run in await self.redis.zrange(keys.index("default", "dead"), 0, -1)
        }
        assert dead == {run_id for run_id, run in self.model.items() if run.poisoned}
        assert await self.redis.zcard(keys.index("default")) == len(self.model)
        later = {run.decode() for run in await self.redis.zrange(keys.LATER, 0, -1)}
        assert later == {run_id for run_id, run in self.model.items() if run.later}

    async def check_run(self, run_id: str, expected: Expected, queue: set[str]) -> bool:
        """Whether a dispatch of it waits; it does when nothing else holds or ends it."""
        stored = await self.redis.hgetall(keys.run(run_id))
        assert stored[b"status"].decode() == expected.status
        assert expected.status in {expected.seen} | LEGAL.get(expected.seen, set())
        expected.seen = expected.status
        await self.check_log(run_id, expected, int(stored[b"seq"]))
        claim = stored[b"claim"].decode()
        assert (f"{stored[b'epoch'].decode()}:{claim}" if claim else None) == expected.fence
        journal = await self.redis.hkeys(keys.journal(run_id))
        assert {key.decode() for key in journal} >= expected.committed
        members = [
            name.value
            for name in Status
            if await self.redis.zscore(keys.index("default", name.value), run_id) is not None
        ]
        assert members == [expected.status]
        await self.check_times(run_id, expected, int(stored.get(b"deadline", 0)))
        queued = f"{run_id}:{stored[b'dispatch'].decode()}" in queue
        assert queued == (expected.fence is None and expected.waits)
        return queued

    async def check_log(self, run_id: str, expected: Expected, seq: int) -> None:
        entries = await self.redis.xrange(keys.events(run_id))
        numbers = [int(entry.split(b"-")[0]) for entry, _ in entries]
        assert numbers == list(range(1, seq + 1))
        types = [fields[b"type"] for _, fields in entries]
        turns = [kind for kind in types if kind in END_EVENTS | {b"run.retried"}]
        assert len(turns) == 2 * expected.retries + expected.ended
        for number, kind in enumerate(turns):
            assert (kind == b"run.retried") == bool(number % 2)
        if expected.ended:
            assert turns[-1].decode() == f"run.{expected.status}"

    async def check_times(self, run_id: str, expected: Expected, deadline: int) -> None:
        waits = (await self.redis.hgetall(keys.waits(run_id))).values()
        timers = [wait for wait in waits if int(wait.split(b"|")[0])]
        endless = expected.parked and not timers and not deadline
        assert (await self.redis.zscore(keys.DUE, run_id) is not None) or endless
        for key in await self.redis.keys(f"run:{run_id}:*"):
            assert (await self.redis.pttl(key) > 0) == expected.ended
        assert await self.redis.pttl(keys.run(run_id)) == -1


async def _awaited(call: Any) -> Any:
    return await call


@pytest.mark.timeout(300)
@pytest.mark.guarantee("G1")
@pytest.mark.guarantee("G4")
def test_any_order_of_transitions(valkey_url: str, long: bool) -> None:
    orders = 0

    class Machine(RunsMachine):
        url = valkey_url

        def teardown(self) -> None:
            nonlocal orders
            orders += 1
            super().teardown()

    examples = 200 if long else 25
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50 if long else 30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert orders >= examples
