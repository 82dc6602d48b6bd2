"""`python -m tests.chaos.nursery`: has everything imported once and forks a worker process whenever it is told to.

A worker that starts in 50 ms instead of a second is what makes hundreds of kills fit into a minute.
"""

import asyncio
import ctypes
import os
import select
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import orjson

LOOK_EVERY_SECONDS = 0.02
DIE_WITH_PARENT = 1


def die_with_parent() -> None:
    """Linux ends this process when the one that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def _child(env: dict[str, str], log: str) -> int:
    die_with_parent()
    os.environ.update(env)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if "CHAOS_SKEW_SECONDS" in env:  # nothing may have seen the true clock
        os.execv(sys.executable, [sys.executable, "-m", "tests.chaos.worker"])
    from tests.chaos.worker import main

    return main()


def _fork(order: bytes) -> int:
    wanted = orjson.loads(order)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _child(wanted["env"], wanted["log"])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def _say(**words: int) -> None:
    sys.stdout.buffer.write(orjson.dumps(words) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Forks for each line on standard input; says on standard output who began and who ended, and how."""
    die_with_parent()
    import uvloop  # noqa: F401

    import worker_app.main  # noqa: F401
    from tests.chaos import traps, worker  # noqa: F401
    from tests.chaos.library.workflows import errand, graph, household, leaf, outing  # noqa: F401

    _say(ready=1)
    children: set[int] = set()
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], LOOK_EVERY_SECONDS)
        if readable:
            order = os.read(0, 1 << 20)
            if not order:
                return
            for line in order.splitlines():
                pid = _fork(line)
                children.add(pid)
                _say(began=pid)
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                children.discard(pid)
                _say(ended=pid, code=os.waitstatus_to_exitcode(status))


class Worker:
    """A forked worker process; `ended` is done with its exit code (negative: the signal that ended it)."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.frozen = False
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        """Whether it runs, also when it is frozen."""
        return not self.ended.done()

    def send(self, how: signal.Signals) -> None:
        """A signal, unless it is gone already."""
        if self.alive:
            os.kill(self.pid, how)
            self.frozen = {signal.SIGSTOP: True, signal.SIGCONT: False}.get(how, self.frozen)


class Nursery:
    """The nursery as the harness sees it."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder = folder
        self._env = env
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._began: asyncio.Queue[int] = asyncio.Queue()
        self._ordering = asyncio.Lock()
        self._workers: dict[int, Worker] = {}
        self._count = 0

    async def __aenter__(self) -> "Nursery":
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.nursery",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=dict(self._env),
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline(), "the nursery did not start"
        self._listening = asyncio.create_task(self._listen(self._process.stdout))
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.send(signal.SIGKILL)
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        if self._listening is not None:
            await self._listening

    async def start(self, **env: str) -> Worker:
        """A new worker process with this environment on top."""
        assert self._process is not None
        assert self._process.stdin is not None
        async with self._ordering:
            self._count += 1
            log = self._folder / f"worker-{self._count}.log"
            self._process.stdin.write(orjson.dumps({"env": env, "log": str(log)}) + b"\n")
            pid = await self._began.get()
        worker = self._workers[pid]
        worker.log = log
        return worker

    async def _listen(self, lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            words = orjson.loads(line)
            if "began" in words:
                pid = words["began"]
                self._workers[pid] = Worker(pid, self._folder)
                self._began.put_nowait(pid)
            elif not (worker := self._workers[words["ended"]]).ended.done():
                worker.ended.set_result(words["code"])


if __name__ == "__main__":
    main()
