"""`python -m tests.chaos.worker`: a worker with traps, and with a clock that is off by CHAOS_SKEW_SECONDS."""

import asyncio
import os
import sys
import time


def skew(seconds: float) -> None:
    """Sets the wall clock of this process off, before anything else is imported that looks at it."""
    true, true_ns = time.time, time.time_ns
    time.time = lambda: true() + seconds
    time.time_ns = lambda: true_ns() + int(seconds * 1e9)


def main() -> int:
    """As `python -m worker_app`, with the scripts of `tests.chaos.traps`."""
    if seconds := float(os.environ.get("CHAOS_SKEW_SECONDS", "0")):
        skew(seconds)
    # Imported late, so that the skewed clock is the only one that they see.
    import uvloop

    from posthouse.settings import Settings
    from tests.chaos.traps import trapped
    from worker_app.main import work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(Settings(_env_file=None), trapped))
    return 0


if __name__ == "__main__":
    sys.exit(main())
