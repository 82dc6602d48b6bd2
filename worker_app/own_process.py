"""A process for one run: started by a worker for a suspect, and gone with the worker."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import TypeAdapter

from posthouse.engine.suspects import NotStarted
from posthouse.runs.ownership import Claimed

CLAIMED: TypeAdapter[Claimed] = TypeAdapter(Claimed)
DRAIN = b"drain\n"

START_SECONDS = 60.0
SILENT_SECONDS = 30.0


class OwnProcess:
    """Starts `python -m worker_app.suspect` and tells it on its standard input which claim to carry.

    It says that it lives through a pipe; one that is silent for `silent_seconds` is stuck, and is killed.
    """

    def __init__(
        self, *, start_seconds: float = START_SECONDS, silent_seconds: float = SILENT_SECONDS
    ) -> None:
        self._start_seconds = start_seconds
        self._silent_seconds = silent_seconds
        self._carrying: set[asyncio.subprocess.Process] = set()
        self._draining = False

    async def carry(self, run: Claimed) -> bool:
        """Whether the process ended by itself with code 0; when cancelled, it is killed first. Raises NotStarted."""
        async with _life_signs() as (signs, told_through):
            process = await _started(told_through)
            os.close(told_through)
            try:
                _tell(process, CLAIMED.dump_json(run) + b"\n")
                await self._first(signs)
                self._carrying.add(process)
                if self._draining:
                    _tell(process, DRAIN)
                return await self._lives_on(signs) and await process.wait() == 0
            finally:
                self._carrying.discard(process)
                _end_group(process.pid)
                await _gone(process)

    async def _first(self, signs: asyncio.StreamReader) -> None:
        try:
            async with asyncio.timeout(self._start_seconds):
                begun = await signs.read(1)
        except TimeoutError:
            begun = b""
        if not begun:
            raise NotStarted("it ended, or said nothing, before it began")

    async def _lives_on(self, signs: asyncio.StreamReader) -> bool:
        """Returns at its end; false when it is silent for too long."""
        try:
            while True:
                async with asyncio.timeout(self._silent_seconds):
                    if not await signs.read(1024):
                        return True
        except TimeoutError:
            return False

    def begin_drain(self) -> None:
        """Tells the processes to end their current step and to give their runs back."""
        self._draining = True
        for process in self._carrying:
            _tell(process, DRAIN)


@asynccontextmanager
async def _life_signs() -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """The reader of a pipe, and the end of it that is to be given away."""
    read, write = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb", buffering=0)
    )
    try:
        yield reader, write
    finally:
        transport.close()


async def _started(told_through: int) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker_app.suspect", str(told_through)),
            # It stays open: when the worker dies it ends, and the process with it.
            stdin=asyncio.subprocess.PIPE,
            pass_fds=(told_through,),
            # A signal for the worker's group is the worker's to act on.
            start_new_session=True,
        )
    except BaseException as error:
        os.close(told_through)
        if isinstance(error, OSError):
            raise NotStarted(str(error)) from error
        raise


def _tell(process: asyncio.subprocess.Process, words: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError, RuntimeError):
        process.stdin.write(words)


async def _gone(process: asyncio.subprocess.Process) -> None:
    """Returns when the killed process is gone, however often this is cancelled: until then its pipes are open."""
    waiting, cancelled = asyncio.ensure_future(process.wait()), False
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def _end_group(group: int) -> None:
    # Also what the run's own code has started there. PermissionError: only zombies are left (macOS).
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
