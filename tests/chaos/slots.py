"""How busy a fleet is while runs wait: share of slot time in use, from all slots taken until the queue is empty."""

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from redis.asyncio import Redis

from posthouse.events.types import Draft, RunCreated
from posthouse.ids import new_run_id
from posthouse.runs.transitions import Acceptance, Transitions
from posthouse.storage import keys
from tests.chaos.report import Report
from tests.chaos.stack import Plan, Stack, open_stack

AT_ONCE = 50
LOOK_EVERY_SECONDS = 0.2
TTL_MS = 3_600_000


@dataclass(frozen=True)
class Load:
    """So many runs for so many slots; each run takes `seconds`, give or take the share `spread` of it."""

    workers: int = 5
    slots: int = 100
    runs: int = 5_000
    seconds: float = 2.0
    spread: float = 0.5
    lease: float = 6.0
    wanted: float = 0.99

    @property
    def places(self) -> int:
        """The slots of all workers."""
        return self.workers * self.slots

    @property
    def patience(self) -> float:
        """Seconds after which the fleet is given up."""
        return 30 + 3 * self.runs * self.seconds / self.places


@dataclass(frozen=True)
class Kept:
    """One run as its record has it: claimed and ended at (ms), by how many claims, and how it ended."""

    began: int
    ended: int
    claims: int
    status: str


async def slots(
    folder: Path, seed: int, load: Load, tell: Callable[[str], None] = lambda _: None
) -> Report:
    """Queues all runs, starts the workers, and measures until the last run has ended."""
    began = time.monotonic()
    report = Report(seed, needed_runs=load.runs)
    plan = Plan(workers=0, slots=load.slots, lease=load.lease, api=False)
    async with open_stack(folder, plan) as stack:
        runs = await _queue(stack.redis, load, random.Random(seed))
        tell(f"{len(runs)} runs wait")
        url = f"redis://127.0.0.1:{stack.ports.valkey}/0"  # no proxy: it would be in the way
        workers = [await stack.nursery.start(REDIS_URL=url) for _ in range(load.workers)]
        used = _processors()
        await _until_empty(stack, load, tell)
        used = tuple(after - before for before, after in zip(used, _processors(), strict=True))
        spent = sum(_processor_seconds(worker.pid) for worker in workers)
        kept = await _kept(stack.redis, runs)
        left = [key.decode() for key in await stack.redis.keys("arq:*")]
    report.runs = sum(run.status == "completed" for run in kept)
    report.seconds = time.monotonic() - began
    _measure(report, load, kept)
    held = sum(run.ended - run.began for run in kept) - sum(runs.values())
    report.figures |= {
        "a run holds its slot longer than its step takes (ms, mean)": round(held / load.runs, 2),
        "processor time of a worker for a run (ms)": round(1000 * spent / load.runs, 2),
        "processors of this machine busy, with anything": round(used[0] / max(used[1], 1), 2),
    }
    report.breaches["runs"] = [
        f"{run} was claimed {one.claims} times and is {one.status}"
        for run, one in zip(runs, kept, strict=True)
        if (one.claims, one.status) != (1, "completed")
    ] + [f"{key} was left" for key in left]
    return report


async def _queue(redis: Redis, load: Load, chance: random.Random) -> dict[str, int]:
    """The runs, and how long the step of each shall take (ms)."""
    transitions = Transitions(redis)
    runs: dict[str, int] = {}

    async def one() -> None:
        low, high = load.seconds * (1 - load.spread), load.seconds * (1 + load.spread)
        pause = round(1000 * chance.uniform(low, high))
        given = f'{{"milliseconds":{pause}}}'
        created = Draft(event=RunCreated(workflow="idle", version=1))
        run = Acceptance(new_run_id(), "default", "idle", 1, given, "{}", created, TTL_MS)
        await transitions.accept(run)
        runs[run.run_id] = pause

    for start in range(0, load.runs, AT_ONCE):
        await asyncio.gather(*(one() for _ in range(min(AT_ONCE, load.runs - start))))
    return runs


async def _until_empty(stack: Stack, load: Load, tell: Callable[[str], None]) -> None:
    """Returns when no run is live any more, or when that takes too long."""
    until = time.monotonic() + load.patience
    told = 0.0
    while time.monotonic() < until:
        running = await stack.redis.zcard(keys.index("default", "running"))
        waiting = await stack.redis.zcard(keys.index("default", "pending"))
        if running + waiting == 0:
            return
        if time.monotonic() - told > 5:
            told = time.monotonic()
            tell(f"{running} slots are busy, {waiting} runs wait")
        await asyncio.sleep(LOOK_EVERY_SECONDS)


def _processors() -> tuple[int, ...]:
    """What all processors have worked so far, and the time that they had (ticks); 0 where that is not told."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0, 0
    return sum(ticks) - sum(ticks[3:5]), sum(ticks)


def _processor_seconds(pid: int) -> float:
    """What the process has used of the processors, so far; 0 where that is not told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _kept(redis: Redis, runs: Iterable[str]) -> list[Kept]:
    pipe = redis.pipeline(transaction=False)
    for run in runs:
        pipe.hmget(keys.run(run), "started_at", "ended_at", "epoch", "status")
    return [
        Kept(int(began or 0), int(ended or 0), int(epoch or 0), (status or b"").decode())
        for began, ended, epoch, status in await pipe.execute()
    ]


def _measure(report: Report, load: Load, kept: list[Kept]) -> None:
    full, empty, busy = busy_between(kept, load.places)
    window = empty - full
    report.breaches["slots"] = []
    if window <= 0:
        report.breaches["slots"].append("never were all slots busy while runs waited")
        return
    share = busy / (load.places * window)
    changes = sum(full < run.began <= empty for run in kept)
    report.figures |= {
        "workers x slots": f"{load.workers} x {load.slots}",
        "from all busy to an empty queue (s)": round(window / 1000, 2),
        "runs taken in that time": changes,
        "share of slot time busy": round(share, 4),
        "a slot is free between two runs (ms, mean)": round(
            (load.places * window - busy) / max(changes, 1), 2
        ),
    }
    if share < load.wanted:
        report.breaches["slots"].append(f"{share:.2%} busy, {load.wanted:.0%} is the least")


def busy_between(kept: list[Kept], places: int) -> tuple[int, int, int]:
    """When all places were busy first, when the last run was taken, and the busy slot time in between (all ms)."""
    changes = sorted([(run.began, 1) for run in kept] + [(run.ended, -1) for run in kept])
    counts = accumulate(change for _, change in changes)
    full = next((at for (at, _), n in zip(changes, counts, strict=True) if n >= places), 0)
    empty = max(run.began for run in kept)
    if not full:
        return 0, 0, 0
    overlaps = (min(run.ended, empty) - max(run.began, full) for run in kept)
    return full, empty, sum(overlap for overlap in overlaps if overlap > 0)
