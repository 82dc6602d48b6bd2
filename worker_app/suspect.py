"""`python -m worker_app.suspect <fd>`: carries the one claimed run that its worker names on standard input."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading

from posthouse import clock
from posthouse.engine.engine import Engine
from posthouse.settings import Settings
from worker_app.main import build, log_to_stderr, new_identity
from worker_app.own_process import CLAIMED

SIGN_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


async def _live(told_through: int) -> None:
    """Says for ever that this process is not stuck; it ends when nobody is there to be told."""
    while True:
        try:
            os.write(told_through, b".")
        except BlockingIOError:
            pass  # the worker stands still; it knows enough when it goes on
        except BrokenPipeError:
            os._exit(1)
        await clock.sleep(SIGN_SECONDS)


def _obey(worker: int, loop: asyncio.AbstractEventLoop, engine: Engine) -> None:
    """Drains when the worker says so, and ends at once when it is gone."""
    # Read below the buffers of Python, whose locks a thread must not hold when the process ends.
    while os.read(worker, 1024):
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(engine.begin_drain)
    os._exit(1)


async def work(settings: Settings, text: bytes, worker: int, told_through: int) -> None:
    """Carries the run until it has ended, is parked, or belongs to somebody else."""
    identity = new_identity()
    log_to_stderr(settings, identity)
    plant = build(settings.model_copy(update={"metrics_port": 0, "worker_slots": 1}), identity)
    orders = (worker, asyncio.get_running_loop(), plant.engine)
    threading.Thread(target=_obey, args=orders, daemon=True).start()
    living = asyncio.create_task(_live(told_through))
    try:
        await plant.engine.carry_alone(CLAIMED.validate_json(text))
    finally:
        living.cancel()
        await plant.close()


def _bound_to_the_worker() -> None:
    """Signals for everybody are the worker's to act on; its death ends this process, also one that is stuck."""
    # Handlers and not SIG_IGN, which programs that are started from here would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _claim_and_rest() -> tuple[bytes, int]:
    """The claim, and the descriptor of what else the worker says; code of the run finds an empty standard input."""
    worker = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Nothing comes after the claim before this process has said that it lives.
    with open(worker, "rb", closefd=False) as pipe:
        return pipe.readline(), worker


def main() -> None:
    """Exit code 0 unless it dies."""
    told_through = int(sys.argv[1])
    os.set_inheritable(told_through, False)
    os.set_blocking(told_through, False)
    _bound_to_the_worker()
    text, worker = _claim_and_rest()
    asyncio.run(work(Settings(), text, worker, told_through))


if __name__ == "__main__":
    main()
