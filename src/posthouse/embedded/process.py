"""One process of a stack: how it is started, watched, started again and ended."""

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from posthouse import clock
from posthouse.embedded.guard import Guard
from posthouse.embedded.logfile import LogFile
from posthouse.embedded.probes import Probe
from posthouse.errors import PosthouseError

FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 5.0
CALM_SECONDS = 10.0
PROBE_EVERY_SECONDS = 0.03
TAIL_LINES = 20
LINE_LIMIT = 1_048_576

# The shell tells the guard its id before it becomes the program, so that there is no moment in
# which a program runs unknown to the guard. Standard input is the guard's pipe until then.
_LAUNCH = 'echo $$ >&0 && exec "$@" </dev/null'

Say = Callable[[str], None]


class StartFailed(PosthouseError):
    """A process ended or stayed silent before it was ready; `lines` are the last that it wrote."""

    def __init__(self, message: str, lines: tuple[str, ...]) -> None:
        super().__init__(message)
        self.lines = lines


@dataclass(frozen=True)
class Process:
    """What to run. Lower stages start first and stop last; one stage starts and stops together.

    A `required` one must be ready within `start_seconds`; others are not waited for any longer.
    """

    name: str
    argv: tuple[str, ...]
    ready: Probe
    env: Mapping[str, str] = field(default_factory=dict)
    stage: int = 0
    start_seconds: float = 20.0
    stop_seconds: float = 5.0
    required: bool = True


class Child:
    """A process and, when it dies, its successors, until it is stopped."""

    def __init__(self, spec: Process, log: LogFile, guard: Guard, say: Say) -> None:
        self.spec = spec
        self._log = log
        self._guard = guard
        self._say = say
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._exited: asyncio.Task[int] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Id of the process that runs now; None between a death and the next start."""
        alive = self._exited is not None and not self._exited.done()
        return self._process.pid if alive and self._process is not None else None

    async def start(self) -> None:
        """Returns when the process is ready. Raises StartFailed."""
        began = clock.monotonic()
        try:
            await self._spawn()
            async with asyncio.timeout(self.spec.start_seconds):
                ready = await self._becomes_ready()
        except TimeoutError:
            if self.spec.required:
                limit = f"{self.spec.start_seconds:g} s"
                raise self._failure(f"was not ready within {limit}") from None
            ready = True
        except OSError as error:
            raise self._failure(f"could not be started: {error}") from None
        if not ready:
            assert self._exited is not None
            raise self._failure(f"{_how(self._exited.result())} before it was ready")
        self._keeper = asyncio.create_task(self._keep(began))

    def _failure(self, what: str) -> StartFailed:
        return StartFailed(f"{self.spec.name} {what}", tuple(self._tail))

    async def _keep(self, began: float) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            assert self._exited is not None
            code = await asyncio.shield(self._exited)
            died = clock.monotonic()
            if died - began > CALM_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self._say(f"{self.spec.name} {_how(code)}; starting it again in {pause:g} s")
            await clock.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)
            began = clock.monotonic()
            try:
                await self._spawn()
            except OSError as error:
                self._say(f"{self.spec.name} could not be started: {error}")
            if await self._becomes_ready():
                self._say(f"{self.spec.name} is back after {clock.monotonic() - died:.1f} s")

    async def _spawn(self) -> None:
        self._tail.clear()
        read, write = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _LAUNCH, self.spec.name, *self.spec.argv),
                stdin=self._guard.pipe,
                stdout=write,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **self.spec.env},
                start_new_session=True,
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        self._guard.add(self._process.pid)
        self._exited = asyncio.create_task(self._reap(self._process, read))

    async def _reap(self, process: asyncio.subprocess.Process, output: int) -> int:
        """Waits for the end, then ends what the process left behind. Returns the exit code."""
        reading = asyncio.create_task(self._copy(output))
        code = await process.wait()
        _signal_group(process.pid, signal.SIGKILL)
        self._guard.forget(process.pid)
        # Only a process that left the group can still hold the pipe; nobody waits for its words.
        await asyncio.wait({reading}, timeout=1)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return code

    async def _copy(self, output: int) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        pipe = os.fdopen(output, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        rest = b""
        try:
            while chunk := await reader.read(65_536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._note(line)
                if len(rest) > LINE_LIMIT:
                    self._note(rest)
                    rest = b""
            if rest:
                self._note(rest)
        finally:
            transport.close()

    def _note(self, line: bytes) -> None:
        self._tail.append(line.decode(errors="replace"))
        self._log.write(self.spec.name, line)

    async def _becomes_ready(self) -> bool:
        """True when the probe says so, False when the process ends first."""
        assert self._exited is not None
        while not self._exited.done():
            if await self.spec.ready():
                return True
            await asyncio.wait({self._exited}, timeout=PROBE_EVERY_SECONDS)
        return False

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL to the whole group; returns when nothing is left."""
        await self._stop_keeping()
        if self._exited is None:
            return
        self._signal(signal.SIGTERM)
        await asyncio.wait({self._exited}, timeout=self.spec.stop_seconds)
        if not self._exited.done():
            self._say(f"{self.spec.name} did not stop in {self.spec.stop_seconds:g} s; killing it")
            self.kill()
        await self._exited

    async def _stop_keeping(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def kill(self) -> None:
        """SIGKILL to the whole group, and no successor."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self.pid is not None:
            _signal_group(self.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _signal_group(group: int, number: signal.Signals) -> None:
    # PermissionError is how macOS speaks of a group in which only zombies are left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
