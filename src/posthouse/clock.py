"""Clocks of this process: monotonic for durations, wall for display; order and deadlines come from Redis TIME."""

import asyncio
import time
from datetime import UTC, datetime

sleep = asyncio.sleep


def monotonic() -> float:
    """Seconds on a clock that never goes back."""
    return time.monotonic()


def wall_ms() -> int:
    """Milliseconds since 1970 by this machine's clock; for display only."""
    return time.time_ns() // 1_000_000


def iso(milliseconds: int) -> str:
    """RFC 3339 text in UTC with milliseconds."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
