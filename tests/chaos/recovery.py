"""How long a killed worker's runs stand still: from SIGKILL to the claim of another worker, over many kills."""

import asyncio
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.evidence import run_kept
from tests.chaos.nemeses import Scene
from tests.chaos.nursery import Worker
from tests.chaos.recorders import Order
from tests.chaos.report import Inflicted, Report
from tests.chaos.stack import Plan, Stack, open_stack
from tests.chaos.workload import Clients

LEASE = 6.0
P50_SECONDS, P99_SECONDS, MAX_SECONDS = 6.0, 8.0, 20.0
WORKERS, AT_ONCE, RUNS = 12, 5, 28
# These live on, as most of a fleet does: whoever has just started ends nobody's lease for one lease.
SPARED = 2
LONG = Order(0, legs=400, width=1, pace_ms=200, nap_ms=0, agent=False)
ROUND_SECONDS = 40.0


async def recovery(folder: Path, seed: int, kills: int, tell: Callable[[str], None]) -> Report:
    """Rounds of five kills among twelve workers, at random phases of their heartbeats."""
    began = time.monotonic()
    report = Report(seed, needed_faults=kills)
    chance = random.Random(seed)
    waited: list[float] = []
    plan = Plan(workers=WORKERS, slots=4, lease=LEASE, api=True)
    async with open_stack(folder, plan) as stack:
        clients = Clients(stack.api_url, seed, LONG, readers=0, patience=3600)
        scene = Scene(stack, clients)
        runs = [asyncio.create_task(_long(clients, n)) for n in range(RUNS)]
        try:
            while report.proven < kills and len(report.faults) < 3 * kills:
                await _spread(scene)
                found = await _round(scene, chance, report, began)
                waited += found
                tell(
                    f"{report.proven} kills, {len(waited)} runs taken over, slowest {max(waited):.2f} s"
                )
        finally:
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
            await clients.close()
    return _told(report, waited, time.monotonic() - began)


async def _long(clients: Clients, number: int) -> None:
    # What the callers want as a limit of the whole run must make no difference.
    limit = {"timeout_seconds": 3600} if number % 2 else {}
    while True:
        seed = number * 1000 + len(clients.accepted)
        await clients.errand(Order(**{**vars(LONG), "seed": seed}), **limit)


def _busy(scene: Scene, owned: dict[int, dict[str, str]]) -> list[Worker]:
    return [worker for worker in scene.stack.workers[SPARED:] if worker.pid in owned]


async def _spread(scene: Scene) -> None:
    """Returns when every worker that there shall be is there, and at least half of them own a run."""
    while len(scene.stack.workers) < WORKERS:
        await scene.stack.add_worker()
    for _ in range(int(ROUND_SECONDS / 0.2)):
        if len(_busy(scene, await scene.owned())) >= AT_ONCE:
            return
        await asyncio.sleep(0.2)


async def _round(scene: Scene, chance: random.Random, report: Report, began: float) -> list[float]:
    busy = _busy(scene, await scene.owned())
    victims = chance.sample(busy, min(AT_ONCE, len(busy)))
    kills = await asyncio.gather(
        *(_kill(scene, worker, chance.uniform(0, LEASE / 3)) for worker in victims)
    )
    for held, _ in kills:
        hit = f"{len(held)} runs" if held else None
        report.faults.append(Inflicted("worker killed", round(time.monotonic() - began, 2), hit))
    found = await asyncio.gather(
        *(
            _taken_over(scene.stack, run, at, epoch)
            for held, at in kills
            for run, epoch in held.items()
        )
    )
    return list(found)


async def _kill(scene: Scene, worker: Worker, after: float) -> tuple[dict[str, int], float]:
    """What it owned when it died, with the epochs; and when that was (ms since 1970)."""
    await asyncio.sleep(after)
    held = (await scene.owned()).get(worker.pid, {})
    at = time.time() * 1000
    worker.send(signal.SIGKILL)
    await worker.ended
    scene.stack.retire(worker)
    left = await scene.still(held)
    return {run: int(held[run].partition(":")[0]) for run in left}, at


async def _taken_over(stack: Stack, run: str, killed_at: float, epoch: int) -> float:
    """Seconds from the kill to the event of the next claim, by Redis' clock, which is this machine's."""
    until = time.monotonic() + ROUND_SECONDS
    while time.monotonic() < until:
        current = await stack.redis.hget(f"run:{run}", "epoch")
        if int(current or 0) > epoch:
            kept = await run_kept(stack.redis, run)
            claims = [e for e in kept.events if e.type == "run.resumed" and e.epoch == epoch + 1]
            return (claims[0].time - killed_at) / 1000
        await asyncio.sleep(0.05)
    names = (
        "status",
        "error",
        "epoch",
        "owner",
        "crashes",
        "dispatch",
        "ended_as",
        "lease",
        "parked_at",
    )
    left = await stack.redis.hmget(f"run:{run}", names)
    print(
        f"{run} was not taken over: {dict(zip(names, left, strict=True))}, killed at {killed_at:.0f}"
    )
    return ROUND_SECONDS


def _told(report: Report, waited: list[float], seconds: float) -> Report:
    waited.sort()
    p50, p99 = (waited[min(len(waited) - 1, int(len(waited) * part))] for part in (0.5, 0.99))
    report.runs, report.seconds = len(waited), seconds
    report.figures = {
        "taken over": len(waited),
        "p50 (s)": round(p50, 3),
        "p99 (s)": round(p99, 3),
        "max (s)": round(waited[-1], 3),
    }
    limits = (
        (p50, P50_SECONDS, "p50"),
        (p99, P99_SECONDS, "p99"),
        (waited[-1], MAX_SECONDS, "max"),
    )
    report.breaches["recovery"] = [
        f"{name} is {value:.2f} s, {limit:g} s is the limit"
        for value, limit, name in limits
        if value > limit
    ]
    return report
