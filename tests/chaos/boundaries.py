"""Crash points, all of them: each call of each script that a worker calls x {before, after} x {dies, freezes, error}.

Each point is a short run of its own, or a tree of runs, with a database of its own: the first worker has the trap, a
second one, started once the trap has sprung, has to bring the run to its end. Questions are answered over HTTP.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_args

import orjson
from redis.asyncio import Redis

from posthouse import ids
from posthouse.budget.model import Budget
from posthouse.events.types import Draft, RunCreated
from posthouse.runs.transitions import Acceptance, Transitions
from posthouse.storage.scripts import Script
from tests.chaos.checker import breaches
from tests.chaos.evidence import Evidence, collect, key_times
from tests.chaos.households import PURSE, Errand, Household, Outing
from tests.chaos.nursery import Worker
from tests.chaos.recorders import Order
from tests.chaos.report import Inflicted, Report
from tests.chaos.stack import Plan, Stack, open_stack
from tests.chaos.traps import How, Trap, When
from tests.chaos.workload import Accepted, Clients

ERRAND = Order(1, legs=2, width=2, pace_ms=10, nap_ms=50, agent=True)
OUTING = Outing(1, pace_ms=10)
ORDERS = (ERRAND, OUTING)
LEASE = 0.6
DATABASES = 16
LIMIT_SECONDS = 40.0
# The API's; then what concerns schedules and the endpoints of models, and no run. All others are called by the worker
# that has a run, and are points.
OF_THE_API = {
    Script.ACCEPT, Script.ANSWER, Script.CANCEL, Script.RETRY, Script.DELETE, Script.DOCTOR, Script.SCHEDULE,
    Script.UNSCHEDULE,
}  # fmt: skip
OF_NO_RUN = {Script.FIRE, Script.ADMIT, Script.REPORT, Script.PACE}
# Called by a suspect's own process, which has no traps: what its death leads to is that its worker calls `crash`.
OF_SUSPECTS = {Script.ISOLATE}
OF_WORKERS = tuple(
    script for script in Script if script not in OF_THE_API | OF_NO_RUN | OF_SUSPECTS
)
# These come again and again, also after the run: their first two calls are points.
REPEATED = {Script.CLAIM, Script.HEARTBEAT, Script.SWEEP}
# These come when the worker is told to stop, or has a suspect: no undisturbed run has them.
PROVOKED = {Script.RELEASE, Script.CRASH}
TRIES = 4
KILLS: tuple[How, ...] = ("SIGKILL", "SIGSTOP")


@dataclass(frozen=True)
class Point:
    """Where a worker is to be hit. For `release` it is told to stop, for `crash` its suspect's own process dies."""

    trap: Trap
    order: Errand = ERRAND

    @property
    def name(self) -> str:
        """What the report counts it under."""
        return f"{self.trap.how} {self.trap.when} {self.trap.name or 'any call'}"

    def __str__(self) -> str:
        return f"{self.order.workflow}: {self.name}, call {self.trap.call}"

    @property
    def of_a_suspect(self) -> bool:
        """Whether only who has a suspect comes there."""
        return self.trap.name == Script.CRASH

    @property
    def wanted(self) -> str:
        """How the run ends: a suspect whose process died is poisoned as soon as that is written."""
        trap = self.trap
        return "failed" if trap.name == Script.CRASH and trap.when == "after" else "completed"


def named_points(calls: dict[str, int]) -> list[Point]:
    """Every call of every script that changes the run; of those that only repeat, the first and the second."""
    most = {name: calls[name] for name in sorted(calls) if name not in OF_NO_RUN}
    most |= {name.value: 2 for name in REPEATED} | {name.value: 1 for name in PROVOKED}
    return [
        Point(Trap(name, call, when, how))
        for name in most
        for call in range(1, most[name] + 1)
        for when in get_args(When)
        for how in KILLS
    ]


def never_hit(points: Iterable[Point]) -> list[str]:
    """The scripts of workers in which none of the points is."""
    names = {point.trap.name for point in points}
    return [f"no point in {script}" for script in OF_WORKERS if not _is_hit(script, names)]


def _is_hit(script: Script, names: set[str]) -> bool:
    return any(name == script or name.startswith(f"{script} ") for name in names)


def error_points(calls: dict[str, int]) -> list[Point]:
    """Every call of a run fails once: before, and after it took effect."""
    return [
        Point(Trap("", call, when, "error"))
        for call in range(1, sum(calls.values()) + 1)
        for when in get_args(When)
    ]


@dataclass
class Lane:
    """One database, one point at a time; with an API and whoever answers there once something asks."""

    stack: Stack
    database: int
    clients: Clients | None = None

    @property
    def redis(self) -> Redis:
        """A client of this database, past the proxy."""
        return Redis(host="127.0.0.1", port=self.stack.ports.valkey, db=self.database)

    @property
    def sprung(self) -> Path:
        """Where it is written that a trap has sprung."""
        return self.stack.folder / f"sprung-{self.database}"

    async def answer(self) -> None:
        """From here on questions are answered."""
        if self.clients is None:
            url = await self.stack.add_api(self.database)
            self.clients = Clients(url, self.database, ERRAND, trees=1.0)
            self.clients.start(0)

    async def close(self) -> None:
        """Nobody answers any more."""
        if self.clients is not None:
            await self.clients.close()


@contextlib.asynccontextmanager
async def lanes(stack: Stack, wanted: int) -> AsyncIterator[list[Lane]]:
    """So many, each with a database of its own."""
    made = [Lane(stack, number) for number in range(wanted)]
    try:
        yield made
    finally:
        await asyncio.gather(*(lane.close() for lane in made))


@dataclass
class Case:
    """One point in one lane."""

    lane: Lane
    point: Point
    held: set[str] = field(default_factory=set)

    @property
    def stack(self) -> Stack:
        """The service."""
        return self.lane.stack

    async def check(self) -> tuple[str | None, dict[str, list[str]]]:
        """What was hit, and every breach."""
        sprung = self.lane.sprung
        sprung.unlink(missing_ok=True)
        if isinstance(self.point.order, Household):
            await self.lane.answer()
        async with self.lane.redis as redis:
            await redis.flushdb()
            run = await accepted(redis, self.point)
            evidence = Evidence(accepted=[run])
            workers = [await self._first()]
            try:
                await self._until_ended(redis, evidence, workers)
                if evidence.frozen:
                    await asyncio.sleep(LEASE / 2)  # whoever woke late has done its worst by then
            finally:
                for worker in workers:
                    worker.send(signal.SIGCONT)
                    worker.send(signal.SIGKILL)
                    self.stack.retire(worker)
            await collect(redis, evidence)
            await self._look_around(redis, evidence)
        return sprung.read_text() if sprung.exists() else None, breaches(evidence)

    async def _look_around(self, redis: Redis, evidence: Evidence) -> None:
        """What others say of these runs, and what is left of them once they are deleted."""
        runs, stack = evidence.runs, self.stack
        evidence.tool_log = [call for call in stack.tools.log if call.run in runs]
        evidence.model_log = [call for call in stack.model.log if call.run in runs]
        if self.lane.clients is not None:
            evidence.bad_answers = [*self.lane.clients.answers.bad]
            self.lane.clients.answers.bad.clear()
        if not evidence.stuck:
            await Transitions(redis).delete(evidence.accepted[0].run, "default")
            evidence.left_after_delete = await key_times(redis)

    async def _first(self) -> Worker:
        trap = {"CHAOS_TRAP": self.point.trap.text(), "CHAOS_SPRUNG": str(self.lane.sprung)}
        return await self.stack.add_worker(database=self.lane.database, **trap)

    async def _until_ended(self, redis: Redis, evidence: Evidence, workers: list[Worker]) -> None:
        [run] = evidence.accepted
        until = time.monotonic() + LIMIT_SECONDS
        stopped = 0.0
        told = False
        while time.monotonic() < until:
            if await self._is_over(redis, run) and not (stopped and workers[0].frozen):
                return
            told = told or await self._told(redis, run, workers[0])
            if len(workers) == 1 and self._has_sprung(workers[0]):
                self.held = await self._owned(redis, run, workers[0])
                workers.append(await self.stack.add_worker(database=self.lane.database))
                stopped = time.time() * 1000
                workers[0].frozen = self.point.trap.how == "SIGSTOP"
            await self._wake(redis, run, workers, evidence, stopped)
            await asyncio.sleep(0.03)
        evidence.stuck.append(run.run)

    def _has_sprung(self, worker: Worker) -> bool:
        counting = self.point.trap.call == 0
        return not worker.alive or (not counting and self.lane.sprung.exists())

    async def _is_over(self, redis: Redis, run: Accepted) -> bool:
        return await redis.hget(f"run:{run.run}", "status") in (b"completed", b"failed")

    async def _tree(self, redis: Redis, run: Accepted) -> set[str]:
        """The runs below it."""
        return {one.decode() for one in await redis.smembers(f"run:{run.run}:tree")}

    async def _owned(self, redis: Redis, run: Accepted, worker: Worker) -> set[str]:
        """Those runs of the tree that the worker owns."""
        found = set()
        for one in {run.run} | await self._tree(redis, run):
            owner = await redis.hget(f"run:{one}", "owner")
            if owner and f"-{worker.pid}-".encode() in owner:
                found.add(one)
        return found

    async def _told(self, redis: Redis, run: Accepted, worker: Worker) -> bool:
        """Does to a worker at work what makes it come to the point; whether it is done."""
        name = self.point.trap.name
        if name not in PROVOKED:
            return True
        runs = {run.run}
        # A deploy is to find all of a tree at work.
        if name == Script.RELEASE and isinstance(run.order, Household):
            runs = await self._tree(redis, run)
        calling = [call.pid for call in self.stack.tools.log if call.run in runs]
        if calling and name == Script.RELEASE:
            worker.send(signal.SIGTERM)
        elif calling and name == Script.CRASH:
            os.kill(calling[0], signal.SIGKILL)
        return bool(calling)

    async def _wake(
        self, redis: Redis, run: Accepted, workers: list[Worker], evidence: Evidence, since: float
    ) -> None:
        """The frozen worker goes on once the other one has a run that was its own, and may do its worst."""
        if not (since and workers[0].frozen):
            return
        others = await self._owned(redis, run, workers[1])
        other = bool(others & self.held if self.held else others)
        if other or await self._is_over(redis, run):
            workers[0].send(signal.SIGCONT)
            evidence.frozen.append((workers[0].pid, since - 50, time.time() * 1000))


async def accepted(redis: Redis, point: Point) -> Accepted:
    """One short order, taken in without the API; a suspect when the point needs one."""
    run = ids.new_run_id()
    # A suspect's process is to die in its first step: a commit would clear it.
    order = replace(point.order, pace_ms=400) if point.of_a_suspect else point.order
    created = Draft(event=RunCreated(workflow=order.workflow, version=1))
    text = orjson.dumps(asdict(order)).decode()
    budget = Budget.model_validate(PURSE).rows() if isinstance(order, Household) else []
    acceptance = Acceptance(
        *(run, "default", order.workflow, 1, text, "{}", created),
        ttl_ms=3_600_000,
        budget=tuple(budget),
    )
    await Transitions(redis).accept(acceptance)
    if point.of_a_suspect:
        await redis.hset(f"run:{run}", "crashes", 2)
    return Accepted(run, order, time.time(), point.wanted)


async def count_calls(lane: Lane, order: Errand) -> dict[str, int]:
    """How often an undisturbed run has its worker make each call, by the names of traps."""
    counts, found = await Case(lane, Point(Trap("", 0, "before", "error"), order)).check()
    assert counts, "the worker counted no call"
    assert not any(found.values()), found
    calls: dict[str, int] = orjson.loads(counts)
    return calls


async def boundaries(
    folder: Path,
    points: Callable[[dict[str, int]], Iterable[Point]],
    *,
    orders: Sequence[Errand] = ORDERS,
    at_once: int = 4,
    tell: Callable[[str], None] = print,
) -> Report:
    """Every point, a few at a time; a point whose trap did not spring is told, and makes the report void."""
    began = time.monotonic()
    report = Report(0)
    report.breaches = {}
    plan = Plan(workers=0, lease=LEASE, databases=DATABASES, api=False, slots=4)
    async with open_stack(folder, plan) as stack, lanes(stack, at_once) as free:
        left: list[Point] = []
        for order in orders:
            calls = await count_calls(free[0], order)
            tell(f"{order.workflow}: {calls}")
            left += [replace(point, order=order) for point in points(calls)]
        if tuple(orders) == ORDERS and points is named_points:
            report.breaches["every script"] = never_hit(left)
        report.needed_faults = len(left)
        await asyncio.gather(*(_some(lane, left, report, tell) for lane in free))
    report.seconds = time.monotonic() - began
    return report


async def _some(lane: Lane, left: list[Point], report: Report, tell: Callable[[str], None]) -> None:
    while left:
        point = left.pop(0)
        for _ in range(TRIES):
            hit, found = await Case(lane, point).check()
            if hit is not None or any(found.values()):
                break
        report.faults.append(Inflicted(point.name, time.monotonic(), hit))
        report.runs += 1
        for name, texts in found.items():
            report.breaches.setdefault(name, []).extend(f"{point}: {text}" for text in texts)
        if hit is None or any(found.values()):
            tell(f"{point}: {'did not spring' if hit is None else found}")
