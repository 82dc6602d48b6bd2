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
    rule,
    run_state_machine_as_test,
)

from posthouse.errors import OwnershipLost
from posthouse.events.types import Draft, MessageCompleted, RunCompleted, RunCreated, RunWaiting
from posthouse.ids import new_run_id, new_token
from posthouse.journal.model import Wait
from posthouse.journal.store import JournalStore, Record
from posthouse.runs.model import Status
from posthouse.runs.ownership import Claimed, Lease
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys
from posthouse.storage.connect import connect

READABLE = [("echo", 1)]
LEASE = 60_000
SAID = Draft(event=MessageCompleted(text="hi", length=2))
DONE = Ending(Status.COMPLETED, Draft(event=RunCompleted()), "{}")


@dataclass
class Expected:
    """What the model knows of a run."""

    committed: set[str] = field(default_factory=set)
    fence: str | None = None
    ended: bool = False


class RunsMachine(RuleBasedStateMachine):
    """The transitions of a few runs, by workers that may be stale."""

    url = ""
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = connect(self.url)
        self.transitions = Transitions(self.redis)
        self.journal = JournalStore(self.redis)
        self.model: dict[str, Expected] = {}
        self.do(self.redis.flushall())

    def do(self, call: Any) -> Any:
        return (
            self.runner.run(call) if asyncio.iscoroutine(call) else self.runner.run(_awaited(call))
        )

    def teardown(self) -> None:
        self.do(self.redis.aclose())
        self.runner.close()

    def current(self, claim: Claimed) -> bool:
        return self.model[claim.run_id].fence == claim.fence

    def lose(self, claim: Claimed) -> None:
        self.model[claim.run_id].fence = None

    @rule(times=st.integers(1, 2))
    def accept(self, times: int) -> None:
        if len(self.model) >= 4:
            return
        created = Draft(event=RunCreated(workflow="echo", version=1))
        run = Acceptance(new_run_id(), "default", "echo", 1, "{}", "{}", created, 60_000)
        for _ in range(times):
            self.do(self.transitions.accept(run))
        self.model[run.run_id] = Expected()

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
            return None
        expected = self.model[found[0].run_id]
        assert expected.fence is None
        assert not expected.ended
        expected.fence = found[0].fence
        return found[0]

    @rule(claim=claims, step=st.sampled_from("abc"), times=st.integers(1, 2))
    def commit(self, claim: Claimed | None, step: str, times: int) -> None:
        if claim is None:
            return
        for _ in range(times):
            with self.refused_if_stale(claim):
                self.do(
                    self.journal.commit(claim, 0, Record(step, b'{"result":1}', events=(SAID,)))
                )
                self.model[claim.run_id].committed.add(step)

    @rule(claim=claims, step=st.sampled_from("abc"))
    def start(self, claim: Claimed | None, step: str) -> None:
        if claim is not None:
            with self.refused_if_stale(claim):
                self.do(self.journal.start(claim, 0, steps=[step], events=[SAID]))

    @rule(claim=claims)
    def heartbeat(self, claim: Claimed | None) -> None:
        if claim is not None:
            lease = Lease(claim.run_id, claim.fence, 0)
            lost = self.do(self.transitions.heartbeat("w", LEASE, {"pid": 1}, [lease]))
            assert (lost == []) == self.current(claim)

    @rule(claim=consumes(claims), after=st.sampled_from([0, 3_600_000, None]))
    def park(self, claim: Claimed | None, after: int | None) -> None:
        if claim is None:
            return
        wait = Wait("nap", "timer", after, '{"result":null}')
        event = Draft(event=RunWaiting(wait_reason="timer"))
        with self.refused_if_stale(claim):
            self.do(
                self.journal.park(
                    claim, 0, status="running", reason="timer", event=event, waits=[wait]
                )
            )
            self.lose(claim)

    @rule(claim=consumes(claims))
    def release(self, claim: Claimed | None) -> None:
        if claim is not None:
            self.do(self.transitions.release(claim, 0))
            if self.current(claim):
                self.lose(claim)

    @rule(claim=consumes(claims))
    def finish(self, claim: Claimed | None) -> None:
        if claim is not None:
            with self.refused_if_stale(claim):
                self.do(self.transitions.finish(claim, 0, DONE))
                self.lose(claim)
                self.model[claim.run_id].ended = True

    @rule(claim=claims)
    def lapse(self, claim: Claimed | None) -> None:
        if claim is not None and self.current(claim):
            self.do(self.redis.hset(keys.run(claim.run_id), "lease", 1))
            self.do(self.redis.zadd(keys.DUE, {claim.run_id: 1}))
            self.lose(claim)
            self.sweep()

    @rule()
    def lose_queue_entry(self) -> None:
        for job in self.do(self.redis.zrange(keys.QUEUE, 0, 0)):
            self.do(self.redis.zrem(keys.QUEUE, job))
            self.do(self.redis.zadd(keys.DUE, {job.split(b":")[0]: 1}))
        self.sweep()

    @rule()
    def sweep(self) -> None:
        seconds, _ = self.do(self.redis.time())
        self.do(self.redis.hset(keys.SWEEP, mapping={"last": seconds * 1000, "quiet_until": 0}))
        swept = self.do(self.transitions.sweep(LEASE, may_end_leases=True, readable=READABLE))
        assert swept.broken == 0

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
        queued = {job.decode().split(":")[0] for job in await self.redis.zrange(keys.QUEUE, 0, -1)}
        bodies = {key.decode().split(":")[2] for key in await self.redis.keys("arq:job:*")}
        assert queued == bodies
        for run_id, expected in self.model.items():
            stored = await self.redis.hgetall(keys.run(run_id))
            status, claim = stored[b"status"].decode(), stored[b"claim"].decode()
            entries = await self.redis.xrange(keys.events(run_id))
            assert [int(entry.split(b"-")[0]) for entry, _ in entries] == list(
                range(1, len(entries) + 1)
            )
            assert int(stored[b"seq"]) == len(entries)
            kinds = [fields[b"type"] for _, fields in entries]
            assert kinds.count(b"run.completed") == int(expected.ended)
            assert (status == "completed") == expected.ended
            assert {
                key.decode() for key in await self.redis.hkeys(keys.journal(run_id))
            } >= expected.committed
            owned = f"{stored[b'epoch'].decode()}:{claim}" if claim else None
            assert owned == expected.fence
            parked = stored.get(b"parked_at") == stored[b"dispatch"]
            assert (
                sum(
                    [
                        run_id in queued,
                        owned is not None,
                        expected.ended,
                        parked and not expected.ended,
                    ]
                )
                == 1
            )
            due = await self.redis.zscore(keys.DUE, run_id)
            endless = parked and not any(
                int(wait.split(b"|")[0])
                for wait in (await self.redis.hgetall(keys.waits(run_id))).values()
            )
            assert (due is not None) or endless
            members = [
                name.value
                for name in Status
                if await self.redis.zscore(keys.index("default", name.value), run_id) is not None
            ]
            assert members == [status]


async def _awaited(call: Any) -> Any:
    return await call


@pytest.mark.guarantee("G1")
@pytest.mark.guarantee("G4")
def test_any_order_of_transitions(valkey_url: str) -> None:
    machine = type("Machine", (RunsMachine,), {"url": valkey_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
