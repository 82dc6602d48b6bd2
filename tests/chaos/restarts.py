"""Rolling restarts under one long run: it must complete, with no step done twice and no crash counted."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.checker import breaches
from tests.chaos.evidence import Evidence, collect
from tests.chaos.nemeses import Scene
from tests.chaos.recorders import Order
from tests.chaos.report import Inflicted, Report, progress
from tests.chaos.stack import Plan, open_stack
from tests.chaos.storm import measure
from tests.chaos.workload import Clients

WORKERS = 2
STEP_MS = 100
PATIENCE_SECONDS = 20.0


async def restarts(folder: Path, times: int, tell: Callable[[str], None] | None = None) -> Report:
    """Each time a new worker is started and the one that has the run is told to stop, at once after its claim."""
    began = time.monotonic()
    say = tell or (lambda text: progress(began, text))
    report = Report(0, needed_runs=1, needed_faults=times)
    # Long enough for as many restarts, each with a few steps between.
    order = Order(7, legs=max(10, times), width=3, pace_ms=STEP_MS, nap_ms=0, agent=False)
    async with open_stack(folder, Plan(workers=WORKERS)) as stack:
        clients = Clients(stack.api_url, 0, order, readers=1.0, patience=3600)
        scene = Scene(stack, clients)
        run = asyncio.create_task(clients.errand(order))
        try:
            for count in range(times):
                hit = await _restart(scene, run)
                report.faults.append(Inflicted("deploy", round(time.monotonic() - began, 2), hit))
                if count % 10 == 9:
                    say(f"{count + 1} restarts")
            await run
            evidence = Evidence(
                accepted=clients.accepted, tool_log=stack.tools.log, stuck=clients.stuck
            )
            await collect(stack.redis, evidence)
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            await clients.close()
    report.breaches = breaches(evidence)
    report.breaches["G7"] = [*scene.troubles, *_counted(evidence)]
    measure(report, evidence)
    report.seconds = time.monotonic() - began
    return report


async def _restart(scene: Scene, run: "asyncio.Task[object]") -> str | None:
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until and not run.done():
        owned = await scene.owned()
        owners = [worker for worker in scene.stack.workers if worker.pid in owned]
        if owners:
            await scene.stack.add_worker()
            scene.stack.retire(owners[0])
            owners[0].send(signal.SIGTERM)
            await asyncio.wait([owners[0].ended], timeout=PATIENCE_SECONDS)
            if not owners[0].ended.done() or owners[0].ended.result() != 0:
                scene.troubles.append(f"a worker did not end well: {owners[0].log}")
            return f"it had {len(owned[owners[0].pid])} run"
        await asyncio.sleep(0.02)
    return None


def _counted(evidence: Evidence) -> list[str]:
    """Crashes that were counted, and steps that were done twice."""
    found = []
    for run, kept in evidence.runs.items():
        reasons = [e.data["reason"] for e in kept.events if e.type == "run.resumed"]
        found += [
            f"{run} was resumed because of {reason}" for reason in reasons if reason != "drain"
        ]
        if kept.record.get("crashes", "0") != "0":
            found.append(f"{run} has {kept.record['crashes']} crashes")
    done = [call.key for call in evidence.tool_log]
    found += [f"{key} was done twice" for key in {key for key in done if done.count(key) > 1}]
    return found
