"""The main run: clients with errands, one seeded fault after another, then the checks."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.checker import breaches
from tests.chaos.evidence import Evidence, collect, key_times
from tests.chaos.nemeses import NEMESES, ON_REDIS, Scene, inflict
from tests.chaos.recorders import Order
from tests.chaos.report import Inflicted, Report, progress
from tests.chaos.stack import START_SECONDS, Plan, Stack, open_stack
from tests.chaos.workload import Clients

PROGRESS_WITHIN_SECONDS = 60.0


@dataclass(frozen=True)
class Storm:
    """How long and how hard. `seconds` of faults; it goes on until `runs` and `faults` are reached, twice as long."""

    seed: int
    seconds: float = 600.0
    runs: int = 300
    faults: int = 150
    clients: int = 16
    order: Order = field(default_factory=lambda: Order(0, pace_ms=200, nap_ms=400))
    plan: Plan = field(default_factory=Plan)
    pauses: tuple[float, float] = (0.3, 1.5)
    nemeses: tuple[str, ...] = tuple(NEMESES)
    trees: float = 0.3


@dataclass(frozen=True)
class Blow:
    """One entry of the schedule: the faults that come together, and the pause after them."""

    faults: tuple[tuple[str, int], ...]
    pause: float


def schedule(wanted: Storm) -> Iterator[Blow]:
    """The faults that a seed stands for, for ever: all nemeses in a new order each round, every fourth a pair."""
    chance = random.Random(wanted.seed)
    while True:
        names = list(wanted.nemeses)
        chance.shuffle(names)
        for place, name in enumerate(names):
            together = [name]
            if place % 4 == 3:
                other = chance.choice([n for n in wanted.nemeses if n != name])
                if name not in ON_REDIS and other not in ON_REDIS:
                    together.append(other)
            faults = tuple((one, chance.randrange(1 << 30)) for one in together)
            yield Blow(faults, chance.uniform(*wanted.pauses))


async def storm(wanted: Storm, folder: Path, say: Callable[[str], None] | None = None) -> Report:
    """Does it all; the report says whether anything was breached."""
    began = time.monotonic()
    tell = say or (lambda text: progress(began, text))
    report = Report(wanted.seed, needed_runs=wanted.runs, needed_faults=wanted.faults)
    async with open_stack(folder, wanted.plan) as stack:
        clients = Clients(stack.api_url, wanted.seed, wanted.order, trees=wanted.trees)
        scene = Scene(stack, clients)
        try:
            clients.start(wanted.clients)
            await _busy(clients, wanted.clients)
            await _blows(wanted, scene, report, tell)
            calm = time.monotonic()
            tell("no more faults; waiting for every run to end")
            await clients.stop()
            report.last_fault_to_end = time.monotonic() - calm
            await _judge(stack, scene, report, tell)
        finally:
            await clients.close()
    report.seconds = time.monotonic() - began
    return report


async def _busy(clients: Clients, wanted: int) -> None:
    """Returns once so many runs are under way."""
    for _ in range(int(START_SECONDS / 0.05)):
        if len(clients.live) >= wanted:
            return
        await asyncio.sleep(0.05)


async def _blows(wanted: Storm, scene: Scene, report: Report, tell: Callable[[str], None]) -> None:
    began = time.monotonic()
    for blow in schedule(wanted):
        spent = time.monotonic() - began
        ended = len(scene.clients.accepted) - len(scene.clients.live)
        enough = report.proven >= wanted.faults and ended >= wanted.runs
        if spent > wanted.seconds * (1 if enough else 2):
            return
        scene.taken.clear()
        hits = await asyncio.gather(*(inflict(scene, name, seed) for name, seed in blow.faults))
        for (name, _), hit in zip(blow.faults, hits, strict=True):
            report.faults.append(Inflicted(name, round(spent, 2), hit))
            tell(f"{name}: {hit or 'hit nothing'} ({ended} runs ended, {report.proven} faults)")
        await _mend(scene, wanted.plan.workers)
        await asyncio.sleep(blow.pause)


async def _mend(scene: Scene, workers: int) -> None:
    """As many workers as there shall be; one that died by itself is a trouble."""
    for worker in list(scene.stack.workers):
        if not worker.alive:
            scene.stack.retire(worker)
            scene.troubles.append(f"a worker ended with {worker.ended.result()}: {worker.log}")
    while len(scene.stack.workers) < workers:
        await scene.stack.add_worker()


async def _judge(stack: Stack, scene: Scene, report: Report, tell: Callable[[str], None]) -> None:
    clients = scene.clients
    evidence = Evidence(
        accepted=clients.accepted,
        tool_log=stack.tools.log,
        model_log=stack.model.log,
        frozen=scene.frozen,
        bad_answers=clients.answers.bad,
        stuck=clients.stuck,
    )
    await asyncio.sleep(2 * stack.plan.lease)  # whoever was late has come by then
    await collect(stack.redis, evidence)
    tell(f"checking {len(evidence.runs)} runs, then deleting them")
    await _delete_all(clients)
    evidence.left_after_delete = await key_times(stack.redis)
    report.breaches = breaches(evidence)
    report.breaches["I12"] = list(scene.troubles)
    if report.last_fault_to_end > PROGRESS_WITHIN_SECONDS:
        report.breaches["I12"].append(
            f"ended {report.last_fault_to_end:.0f} s after the last fault"
        )
    measure(report, evidence)
    report.answers = {str(code): times for code, times in sorted(clients.answers.counts.items())}
    report.figures["slowest 503 (s)"] = round(clients.answers.slowest_503, 3)
    report.figures["answers"] = report.answers


async def _delete_all(clients: Clients) -> None:
    left = [one.run for one in clients.accepted if one.ended is not None]

    async def some() -> None:
        while left:
            await clients.delete(left.pop())

    await asyncio.gather(*(some() for _ in range(8)))


def measure(report: Report, evidence: Evidence) -> None:
    """The counts of the report."""
    report.runs = sum(one.ended is not None for one in evidence.accepted)
    report.steps = sum(len(kept.journal) for kept in evidence.runs.values())
    report.executions = len(evidence.tool_log)
    report.extra_executions = report.executions - len({c.key for c in evidence.tool_log})
    readings = [one.reading for one in evidence.accepted if one.reading is not None]
    report.events_read = sum(len(reading.seen) for reading in readings)
    report.figures["readers"] = len(readings)
    report.figures["their connections"] = sum(reading.connections for reading in readings)
