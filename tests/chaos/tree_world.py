"""Trees of runs on a real Redis, and their model: each deed is done to both, and what it gives is compared."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from posthouse.budget.model import Budget, Busy, Granted, Refused, Reservation
from posthouse.control.doctor import Doctor
from posthouse.errors import Conflict, Gone, OwnershipLost
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
from posthouse.inputs.model import Answer, Decision, Kind, OnTimeout, Question, Request, input_id
from posthouse.inputs.store import Inputs
from posthouse.journal.model import Usage, Wait
from posthouse.journal.store import JournalStore, Record, Spawn
from posthouse.runs.model import TERMINAL, Status
from posthouse.runs.ownership import Claimed, Lease
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys
from posthouse.storage.connect import connect
from tests.chaos.tree_check import SNAPSHOT, TENANT, Snapshot, check
from tests.chaos.tree_model import Asked, Node

READABLE = [("echo", 1)]
LEASE = TTL = 60_000
HOUR = 3_600_000
SUSPECT_AFTER = 2  # sweep.lua has the same
MOST_NODES, DEEPEST = 7, 3
SAID = Draft(event=MessageCompleted(text="hi", length=2))
CREATED = Draft(event=RunCreated(workflow="echo", version=1))
WRONG = {"code": "fatal", "message": "no", "retryable": False}
LARGE = '"' + "x" * 70_000 + '"'
ENDINGS = {
    "completed": Ending(Status.COMPLETED, Draft(event=RunCompleted()), '{"n":1}'),
    "large": Ending(Status.COMPLETED, Draft(event=RunCompleted()), LARGE),
    "failed": Ending(Status.FAILED, Draft(event=RunFailed(**WRONG)), "", '{"code":"fatal"}'),
    "incomplete": Ending(Status.INCOMPLETE, Draft(event=RunIncomplete(code="fatal", message="no"))),
}
CHILDREN, SELDOM = "xy", 58  # picks go to 63
T = TypeVar("T")


class World:
    """Up to two roots and what comes of them, by workers that may be stale; a pick says which of several."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.redis = connect(url)
        self.transitions, self.journal = Transitions(self.redis), JournalStore(self.redis)
        self.inputs, self.doctor = Inputs(self.redis), Doctor(self.redis, grace_seconds=0)
        self.forest: list[Node] = []
        self.claims: list[Claimed] = []
        self.given_up: list[Claimed] = []
        self.do(self.redis.flushall())

    def do(self, call: Any) -> Any:
        return self.runner.run(call if asyncio.iscoroutine(call) else _awaited(call))

    def close(self) -> None:
        """Lets go of Redis."""
        self.do(self.redis.aclose())
        self.runner.close()

    @property
    def all(self) -> list[Node]:
        """Every run that there is."""
        return [node for root in self.forest for node in root.tree]

    @property
    def tried(self) -> list[Node]:
        """The roots that can be tried again."""
        return [one for one in self.forest if one.over and one.status is not Status.COMPLETED]

    def node_of(self, claim: Claimed) -> Node | None:
        """The run, when the claim is its current one."""
        return next(
            (n for n in self.all if (n.run_id, n.fence) == (claim.run_id, claim.fence)), None
        )

    def claimed(self, pick: int, *, given_up: bool = False) -> Claimed:
        """A claim: one of the current ones, now and then one that is over, or that its owner gave up."""
        current = [claim for claim in self.claims if self.node_of(claim)]
        stale = [claim for claim in self.claims if not self.node_of(claim)]
        stale += self.given_up if given_up else []
        return one_of(stale if stale and (pick >= SELDOM or not current) else current, pick)

    def give_up(self, claim: Claimed) -> None:
        """Its owner said so itself, and is told so when it says it again."""
        self.claims.remove(claim)
        self.given_up = [*self.given_up[-5:], claim]

    @contextlib.contextmanager
    def refused_if_stale(self, claim: Claimed) -> Iterator[Node]:
        node = self.node_of(claim)
        try:
            yield node or Node("stale")
        except OwnershipLost:
            assert node is None
        else:
            assert node is not None

    def accept(self, times: int, limit: int, timed: bool) -> None:
        run = Acceptance(
            *(new_run_id(), TENANT, "echo", 1, "{}", "{}", CREATED, TTL),
            timeout_ms=HOUR if timed else 0,
            budget=tuple(Budget(tokens=limit).rows()) if limit else (),
        )
        for _ in range(times):
            self.do(self.transitions.accept(run))
        self.forest.append(Node(run.run_id, limit=limit))

    def claim(self, repeated: bool) -> None:
        token = new_token()
        found = self.do(self.transitions.claim("w", token, LEASE, 1, READABLE))
        if repeated:
            again = self.do(self.transitions.claim("w", token, LEASE, 1, READABLE))
            assert [replace(run, claimed_at=0, queued_at=0) for run in again] == [
                replace(run, claimed_at=0, queued_at=0) for run in found
            ]
        node = next(node for node in self.all if node.run_id == found[0].run_id)
        assert node.queued
        assert (found[0].signals, found[0].crashes) == (node.signals, node.crashes)
        assert found[0].parent == (node.parent.run_id if node.parent else "")
        assert found[0].budgeted == bool(node.top.limit)
        node.fence, node.status, node.started = found[0].fence, Status.RUNNING, True
        self.claims = [*self.claims[-12:], found[0]]

    def commit(self, pick: int, step: str, times: int, used: int) -> None:
        claim = self.claimed(pick, given_up=True)
        for _ in range(times):
            with self.refused_if_stale(claim) as node:
                usage = Usage(input_tokens=node.reserved.get(step, 0) * used // 10)
                record = Record(step, b'{"result":1}', usage=usage, events=(SAID,))
                self.do(self.journal.commit(claim, 0, record))
                if step not in node.committed:
                    node.crashes = 0
                    node.top.spent += usage.input_tokens
                    node.reserved.pop(step, None)
                    node.committed.add(step)

    def reserve(self, pick: int, step: str, times: int) -> None:
        claim = self.claimed(pick, given_up=True)
        node = self.node_of(claim)
        if node and (not node.top.limit or step in node.committed):
            return
        wanted = Reservation(step, input_tokens=10, most=40, least=1, model_calls=1)
        for _ in range(times):
            with self.refused_if_stale(claim) as node:
                _, verdict = self.do(self.journal.reserve(claim, 0, wanted))
                # What this step reserved before is of a try before this one.
                node.reserved.pop(step, None)
                held = sum(one for other in node.tree for one in other.reserved.values())
                whole = node.top.limit - node.top.spent - 10
                now, later = min(40, whole - held), min(40, whole)
                if now >= 1 and now == later:
                    assert verdict == Granted(now, verdict.percent)
                    node.reserved[step] = 10 + now
                else:
                    assert isinstance(verdict, Busy if later >= 1 else Refused)

    def spawn(self, pick: int, key: str, times: int) -> None:
        claim = self.claimed(pick, given_up=True)
        node = self.node_of(claim)
        if node and (len(node.tree) >= MOST_NODES or node.depth >= DEEPEST):
            return
        if node and key in node.spawned and key not in node.before:
            return
        # The step may be there from before a retry, when the code spawned something else there.
        stored = self.do(self.redis.hget(keys.journal(claim.run_id), key)) if node else None
        former = stored[7:].split(b",")[0].decode() if stored else ""
        child = new_run_id()
        text = b'{"result":"%b"}' % child.encode()
        spawn = Spawn(key, f"{key}/end", child, text, key, "echo", 1, "{}", CREATED, former)
        for _ in range(times):
            with self.refused_if_stale(claim):
                self.do(self.journal.spawn(claim, 0, spawn))
        if node:
            node.spawn(key, child)

    def ask(self, pick: int, key: str, times: int, how: OnTimeout) -> None:
        claim = self.claimed(pick, given_up=True)
        node = self.node_of(claim)
        if node and key in node.asked and node.asked[key].state != "closed":
            return
        expires = how is not OnTimeout.WAIT
        request = Request(kind=Kind.QUESTION, question="?", on_timeout=how)
        for _ in range(times):
            with self.refused_if_stale(claim):
                question = Question(key, request, 3600 if expires else None)
                self.do(self.journal.ask(claim, 0, question, ""))
        if node:
            node.asked[key] = Asked(expires=expires)
            node.former.pop(key, None)
            found = self.do(self.inputs.get(input_id(node.run_id, key), TENANT))
            assert (found.state, found.answer) == ("open", None)

    def answer(self, pick: int, value: int, times: int) -> None:
        node, key, asked = one_of(
            [(n, key, one) for n in self.all for key, one in {**n.former, **n.asked}.items()], pick
        )
        found = self.do(self.inputs.get(input_id(node.run_id, key), TENANT))
        assert found.state == asked.state
        said = Answer(decision=Decision.RESPOND, value=value)
        for _ in range(times):
            try:
                first = self.do(self.inputs.answer(found, TENANT, said))
            except Conflict:
                assert asked.state == "closed" or asked.value == 3 - value
            except Gone:
                assert asked.state == "expired"
            else:
                assert first == (asked.state == "open")
                if first:
                    asked.state, asked.value = "answered", value
                    node.wake()

    def park(self, pick: int, nap: bool) -> None:
        """Waits for all that has no end yet; the journal is as it was when the signals were told."""
        claim = self.claimed(pick)
        node = self.node_of(claim) or Node("stale")
        waits = [Wait(f"{key}/end", "child", None, child.run_id) for key, child in node.joinable]
        waits += [Wait(key, "input", None) for key in node.questions]
        if (not node.napped or "nap" in node.before) and (nap or not waits):
            waits.append(Wait("nap", "timer", HOUR, '{"result":null}'))
        if not waits:
            return
        status = Status.AWAITING_INPUT if node.questions else Status.RUNNING
        event = Draft(event=RunWaiting(wait_reason="timer"))
        with self.refused_if_stale(claim):
            parking = self.journal.park(
                claim, 0, status=status, reason="timer", event=event, waits=waits
            )
            signals = self.do(parking)
            moved = node.park(status, seen=claim.signals, napping=waits[-1].key == "nap")
            assert signals == (node.signals if moved else None)
            self.give_up(claim)
            if moved:
                self.claims.append(replace(claim, signals=signals))

    def carry(
        self,
        spawned: str,
        asked: str,
        how: OnTimeout = OnTimeout.WAIT,
        *,
        nap: bool = False,
        end: str = "",
    ) -> None:
        """What a worker does most often: it takes a run, and leaves it when it is done or has to wait."""
        self.claim(repeated=False)
        pick = sum(1 for claim in self.claims if self.node_of(claim)) - 1
        for key in spawned:
            self.spawn(pick, key, times=1)
        for key in asked:
            self.ask(pick, key, times=1, how=how)
        self.everything_agrees()
        if end and self.claimed(pick).parent:
            self.finish(pick, end, times=1)
        else:
            self.park(pick, nap)

    def finish(self, pick: int, how: str, times: int) -> None:
        claim, ending = self.claimed(pick), ENDINGS[how]
        if self.node_of(claim) and not claim.parent and pick % 4:
            return
        with self.refused_if_stale(claim) as node:
            for _ in range(times):
                self.do(self.transitions.finish(claim, 0, ending))
            node.end(ending.status, ending.output or None)
            self.give_up(claim)

    def release(self, claim: Claimed) -> None:
        self.do(self.transitions.release(claim, 0))
        if node := self.node_of(claim):
            node.disown()
            self.give_up(claim)

    def crash(self, claim: Claimed, times: int) -> None:
        with self.refused_if_stale(claim) as node:
            verdicts = {self.do(self.transitions.crash(claim)) for _ in range(times)}
            node.crash(limit=3)
            assert verdicts == {node.poisoned}
            self.give_up(claim)

    def beat(self, claim: Claimed) -> None:
        leases = [Lease(claim.run_id, claim.fence, 0)]
        lost = self.do(self.transitions.heartbeat("w", LEASE, {"pid": 1}, leases))
        node = self.node_of(claim)
        if node and node.overdue and not node.asking:
            node.end(Status.FAILED)
            node = None
        assert lost == ([] if node else leases)

    def lapse(self, claim: Claimed) -> None:
        if node := self.node_of(claim):
            self.do(self.redis.hset(keys.run(claim.run_id), "lease", 1))
            self.sweep(lapsed=node)

    def cancel(self, pick: int) -> None:
        node = one_of(self.all, pick)
        if node.root is None and pick < SELDOM:
            return
        before = node.status
        try:
            self.do(self.transitions.cancel(node.run_id, TENANT))
        except Conflict:
            assert before in TERMINAL - {Status.CANCELLED}
        else:
            assert before not in TERMINAL - {Status.CANCELLED}
            if before is not Status.CANCELLED:
                node.end(Status.CANCELLED)

    def retry(self, pick: int, aside: set[str], times: int, end: bool) -> None:
        root = one_of(self.tried, pick)
        again = aside | ({"x/end"} if end or "x" in aside else set())
        children = list(root.to_revive(again))
        seen = int(self.do(self.redis.hget(keys.run(root.run_id), "seq")))
        rows = [(child.run_id, ["a"]) for child in children]
        for _ in range(times):
            self.do(self.transitions.retry(root.run_id, TENANT, seen, sorted(again), rows))
        root.revive(again)
        for child in children:
            child.revive({"a"})

    def delete(self, pick: int) -> None:
        """Most often what cannot be deleted: what is gone shows nothing more."""
        node = one_of(self.all, pick)
        if node.root is None and node.over and pick < SELDOM:
            return
        try:
            self.do(self.transitions.delete(node.run_id, TENANT))
        except Conflict:
            assert node.root is not None or not node.over
        else:
            assert node.over
            self.forest.remove(node)

    def time_of_a_wait_is_over(self, pick: int) -> None:
        node, key = one_of([(node, key) for node in self.all for key in node.timed], pick)
        wait = self.do(self.redis.hget(keys.waits(node.run_id), key))
        self.do(self.redis.hset(keys.waits(node.run_id), key, b"1|" + wait.partition(b"|")[2]))
        if key == "nap":
            node.nap_is_over = True
        else:
            node.asked[key].over = True
        self.sweep()

    def time_of_a_root_is_over(self, pick: int) -> None:
        self.sweep()
        root = one_of(self.forest, pick)
        deadline = self.do(self.redis.hget(keys.run(root.run_id), "deadline"))
        if not root.over and int(deadline or 0):
            self.do(self.redis.hset(keys.run(root.run_id), "deadline", 1))
            root.overdue, root.base = True, None
            self.sweep()

    def people_take_their_time(self, pick: int) -> None:
        root = one_of([root for root in self.forest if root.asking], pick)
        self.do(self.redis.hincrby(keys.run(root.run_id), "asked_since", -5000))
        root.waited += 5000

    def sweep(self, lapsed: Node | None = None) -> None:
        """Looks at everything, twice: what is looked at first is not said."""
        for _ in range(2):
            due = self.do(self.redis.zrange(keys.DUE, 0, -1))
            if due:
                self.do(self.redis.zadd(keys.DUE, dict.fromkeys(due, 1)))
            seconds, _ = self.do(self.redis.time())
            self.do(self.redis.hset(keys.SWEEP, mapping={"last": seconds * 1000, "quiet_until": 0}))
            swept = self.do(self.transitions.sweep(LEASE, may_end_leases=True, readable=READABLE))
            assert swept.broken == swept.purged == 0
        for node in self.all:
            node.ring()
        for root in self.forest:
            if root.overdue and not root.asking:
                root.end(Status.FAILED)
        if lapsed and not lapsed.over:
            lapsed.lapse(SUSPECT_AFTER)

    def everything_agrees(self) -> None:
        check(self.forest, Snapshot(self.do(self.redis.eval(SNAPSHOT, 0))))


def one_of(choices: Sequence[T], pick: int) -> T:
    """The one that the pick says."""
    return choices[pick % len(choices)]


async def _awaited(call: Any) -> Any:
    return await call
