"""`python -m tests.chaos`: the storm; recovery, boundaries, errors, restarts, slots, dags, trees. 1 on any breach."""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from tests.chaos import dags
from tests.chaos.boundaries import boundaries, error_points, named_points
from tests.chaos.recovery import recovery
from tests.chaos.report import Report, progress
from tests.chaos.restarts import restarts
from tests.chaos.slots import Load, slots
from tests.chaos.storm import Storm, storm
from tests.chaos.trees import trees


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        default="storm",
        choices=["storm", "recovery", "boundaries", "errors", "restarts", "slots", "dags", "trees"],
    )
    parser.add_argument("--seed", type=int, default=None, help="replays that schedule of faults")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=300, help="fewer make the storm void")
    parser.add_argument("--faults", type=int, default=150, help="fewer proven make it void")
    parser.add_argument("--json", type=Path, default=None, help="where the report is written to")
    parser.add_argument("--folder", type=Path, default=None, help="keeps logs and data there")
    parser.add_argument("--kills", type=int, default=100, help="of recovery")
    parser.add_argument("--times", type=int, default=100, help="of restarts, or plans of dags")
    return parser.parse_args()


async def work(given: argparse.Namespace, folder: Path) -> Report:
    seed = random.SystemRandom().randrange(1 << 31) if given.seed is None else given.seed
    began = time.monotonic()
    print(f"seed {seed}; logs in {folder}", flush=True)

    def tell(text: str) -> None:
        progress(began, text)

    match given.what:
        case "boundaries":
            return await boundaries(folder, named_points, tell=tell)
        case "errors":
            return await boundaries(folder, error_points, tell=tell)
        case "recovery":
            return await recovery(folder, seed, given.kills, tell)
        case "restarts":
            return await restarts(folder, given.times, tell)
        case "slots":
            return await slots(folder, seed, Load(), tell)
        case "dags":
            return await dags.dags(folder, seed, dags.Load(plans=given.times), tell)
        case "trees":
            return await trees(folder, seed, given.minutes * 60, tell)
        case _:
            wanted = Storm(seed, given.minutes * 60, given.runs, given.faults)
            return await storm(wanted, folder, tell)


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as temporary:
        folder = given.folder or Path(temporary)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(work(given, folder))
    print(report.table())
    if given.json is not None:
        report.write(given.json)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
