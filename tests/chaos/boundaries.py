"""Crash points, all of them: each call of each script that a worker calls x {before, after} x {dies, freezes, error}.

Each point is a short run of its own with a database of its own: the first worker has the trap, a second one, started
once the trap has sprung, has to bring the run to its end.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import orjson
from redis.asyncio import Redis

from posthouse import ids
from posthouse.events.types import Draft, RunCreated
from posthouse.runs.transitions import Acceptance, Transitions
from posthouse.storage.scripts import Script
from tests.chaos.checker import breaches
from tests.chaos.evidence import Evidence, collect
from tests.chaos.nursery import Worker
from tests.chaos.recorders import Order
from tests.chaos.report import Inflicted, Report
from tests.chaos.stack import Plan, Stack, open_stack
from tests.chaos.traps import How, Trap, When
from tests.chaos.workload import Accepted

SHORT = Order(1, legs=2, width=2, pace_ms=10, nap_ms=50, agent=True)
LEASE = 0.6
DATABASES = 16
LIMIT_SECONDS = 40.0
# What a worker calls; the other scripts are the API's.
OF_WORKERS = (
    Script.CLAIM, Script.HEARTBEAT, Script.START, Script.COMMIT, Script.PARK, Script.RELEASE, Script.FINISH,
    Script.CRASH, Script.SWEEP,
)  # fmt: skip
# These come again and again, also after the run: their first two calls are points.
REPEATED = {Script.CLAIM, Script.HEARTBEAT, Script.SWEEP}
TRIES = 3
KILLS: tuple[How, ...] = ("SIGKILL", "SIGSTOP")


@dataclass(frozen=True)
class Point:
    """Where a worker is to be hit. For `release` it is told to stop, for `crash` its suspect's own process dies."""

    trap: Trap

    @property
    def name(self) -> str:
        """What the report counts it under."""
        return f"{self.trap.how} {self.trap.when} {self.trap.script or 'any call'}"

    def __str__(self) -> str:
        return f"{self.name}, call {self.trap.call}"

    @property
    def wanted(self) -> str:
        """How the run ends: a suspect whose process died is poisoned as soon as that is written."""
        trap = self.trap
        return "failed" if trap.script == Script.CRASH and trap.when == "after" else "completed"


def named_points(calls: dict[str, int]) -> list[Point]:
    """Every call of every script that changes the run; of those that only repeat, the first and the second."""
    most = {script: 2 if script in REPEATED else calls.get(script, 1) for script in OF_WORKERS}
    return [
        Point(Trap(script, call, when, how))
        for script in OF_WORKERS
        for call in range(1, most[script] + 1)
        for when in get_args(When)
        for how in KILLS
    ]


def error_points(calls: dict[str, int]) -> list[Point]:
    """Every call of a run fails once: before, and after it took effect."""
    return [
        Point(Trap("", call, when, "error"))
        for call in range(1, sum(calls.values()) + 1)
        for when in get_args(When)
    ]


@dataclass
class Case:
    """One point in one database."""

    stack: Stack
    database: int
    point: Point
    sprung: Path

    @property
    def redis(self) -> Redis:
        """A client of this database, past the proxy."""
        return Redis(host="127.0.0.1", port=self.stack.ports.valkey, db=self.database)

    async def check(self) -> tuple[str | None, dict[str, list[str]]]:
        """What was hit, and every breach."""
        self.sprung.unlink(missing_ok=True)
        async with self.redis as redis:
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
            evidence.tool_log = [c for c in self.stack.tools.log if c.run == run.run]
            evidence.model_log = [c for c in self.stack.model.log if c.run == run.run]
            await collect(redis, evidence)
        hit = self.sprung.read_text() if self.sprung.exists() else None
        return hit, breaches(evidence)

    async def _first(self) -> Worker:
        trap = {"CHAOS_TRAP": self.point.trap.text(), "CHAOS_SPRUNG": str(self.sprung)}
        return await self.stack.add_worker(database=self.database, **trap)

    async def _until_ended(self, redis: Redis, evidence: Evidence, workers: list[Worker]) -> None:
        [run] = evidence.accepted
        until = time.monotonic() + LIMIT_SECONDS
        stopped = 0.0
        told = False
        while time.monotonic() < until:
            if await self._is_over(redis, run) and not (stopped and workers[0].frozen):
                return
            told = told or self._told(run, workers[0])
            if len(workers) == 1 and self._has_sprung(workers[0]):
                workers.append(await self.stack.add_worker(database=self.database))
                stopped = time.time() * 1000
                workers[0].frozen = self.point.trap.how == "SIGSTOP"
            await self._wake(redis, run, workers, evidence, stopped)
            await asyncio.sleep(0.03)
        evidence.stuck.append(run.run)

    def _has_sprung(self, worker: Worker) -> bool:
        counting = self.point.trap.call == 0
        return not worker.alive or (not counting and self.sprung.exists())

    async def _is_over(self, redis: Redis, run: Accepted) -> bool:
        return await redis.hget(f"run:{run.run}", "status") in (b"completed", b"failed")

    def _told(self, run: Accepted, worker: Worker) -> bool:
        """Does to a worker at work what makes it come to the point; whether it is done."""
        calling = [call.pid for call in self.stack.tools.log if call.run == run.run]
        if calling and self.point.trap.script == Script.RELEASE:
            worker.send(signal.SIGTERM)
        elif calling and self.point.trap.script == Script.CRASH:
            os.kill(calling[0], signal.SIGKILL)
        return bool(calling)

    async def _wake(
        self, redis: Redis, run: Accepted, workers: list[Worker], evidence: Evidence, since: float
    ) -> None:
        """The frozen worker goes on once the other one has the run, and may do its worst."""
        if not (since and workers[0].frozen):
            return
        owner = await redis.hget(f"run:{run.run}", "owner")
        other = owner is not None and f"-{workers[1].pid}-".encode() in owner
        if other or await self._is_over(redis, run):
            workers[0].send(signal.SIGCONT)
            evidence.frozen.append((workers[0].pid, since - 50, time.time() * 1000))


async def accepted(redis: Redis, point: Point) -> Accepted:
    """One short errand, taken in without the API; a suspect when the point needs one."""
    run = ids.new_run_id()
    # A suspect's process is to die in its first step: a commit would clear it.
    order = replace(SHORT, pace_ms=400) if point.trap.script == Script.CRASH else SHORT
    created = Draft(event=RunCreated(workflow="errand", version=1))
    text = orjson.dumps(asdict(order)).decode()
    acceptance = Acceptance(run, "default", "errand", 1, text, "{}", created, ttl_ms=3_600_000)
    await Transitions(redis).accept(acceptance)
    if point.trap.script == Script.CRASH:
        await redis.hset(f"run:{run}", "crashes", 2)
    return Accepted(run, order, time.time(), point.wanted)


async def count_calls(stack: Stack) -> dict[str, int]:
    """How often an undisturbed run has its worker call each script."""
    counts = stack.folder / "counts"
    case = Case(stack, 0, Point(Trap("", 0, "before", "error")), counts)
    _, found = await case.check()
    assert not any(found.values()), found
    calls: dict[str, int] = orjson.loads(counts.read_bytes())
    return calls


async def boundaries(
    folder: Path,
    points: Callable[[dict[str, int]], Iterable[Point]],
    *,
    at_once: int = 4,
    tell: Callable[[str], None] = print,
) -> Report:
    """Every point, a few at a time; a point whose trap did not spring is told, and makes the report void."""
    began = time.monotonic()
    report = Report(0)
    report.breaches = {}
    plan = Plan(workers=0, lease=LEASE, databases=DATABASES, api=False, slots=4)
    async with open_stack(folder, plan) as stack:
        calls = await count_calls(stack)
        left = list(points(calls))
        report.needed_faults = len(left)
        free = list(range(1, at_once + 1))
        with contextlib.suppress(IndexError):
            await asyncio.gather(*(_some(stack, database, left, report, tell) for database in free))
    report.seconds = time.monotonic() - began
    return report


async def _some(
    stack: Stack, database: int, left: list[Point], report: Report, tell: Callable[[str], None]
) -> None:
    while left:
        point = left.pop(0)
        case = Case(stack, database, point, stack.folder / f"sprung-{database}")
        for _ in range(TRIES):
            hit, found = await case.check()
            if hit is not None or any(found.values()):
                break
        report.faults.append(Inflicted(point.name, time.monotonic(), hit))
        report.runs += 1
        for name, texts in found.items():
            report.breaches.setdefault(name, []).extend(f"{point}: {text}" for text in texts)
        if hit is None or any(found.values()):
            tell(f"{point}: {'did not spring' if hit is None else found}")
