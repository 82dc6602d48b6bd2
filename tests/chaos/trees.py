"""Trees of runs in any order of what may happen to them, round after round, on a Redis of their own."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from redis.exceptions import RedisError

from posthouse.embedded.ports import free_ports
from posthouse.embedded.valkey import find_server
from posthouse.storage.connect import connect
from tests.chaos.report import Report
from tests.chaos.stack import Server
from tests.chaos.tree_machine import any_order

EXAMPLES, STEPS = 100, 60
START_SECONDS = 10.0


async def trees(folder: Path, seed: int, seconds: float, tell: Callable[[str], None]) -> Report:
    """So many seconds of it; a breach is told with the shortest way to it."""
    report, began = Report(seed), time.monotonic()
    [port] = free_ports(1)
    argv = [find_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    valkey = Server([*argv, "--dir", str(folder)], folder / "valkey.log", {})
    await valkey.start()
    url, rounds = f"redis://127.0.0.1:{port}", 0
    try:
        await _ready(url)
        while time.monotonic() - began < seconds and not report.breaches:
            try:
                await asyncio.to_thread(any_order, url, EXAMPLES, STEPS, seed + rounds)
            except AssertionError as breach:
                report.breaches["trees"] = [
                    "\n".join([str(breach), *getattr(breach, "__notes__", [])])
                ]
            rounds += 1
            tell(f"{rounds * EXAMPLES} histories of trees, up to {STEPS} steps each")
    finally:
        await valkey.kill()
    report.breaches.setdefault("trees", [])
    report.seconds = time.monotonic() - began
    report.figures["histories"] = rounds * EXAMPLES
    return report


async def _ready(url: str) -> None:
    redis = connect(url)
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                await redis.ping()
                break
            except (RedisError, OSError):
                await asyncio.sleep(0.05)
    await redis.aclose()
