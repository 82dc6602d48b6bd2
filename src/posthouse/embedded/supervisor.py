"""The supervisor: starts processes in order, keeps them alive, and stops them in reverse order."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from itertools import groupby
from operator import attrgetter
from types import TracebackType
from typing import Self

from posthouse.embedded.guard import Guard
from posthouse.embedded.logfile import LogFile
from posthouse.embedded.process import Child, Process, Say, StartFailed


class Supervisor:
    """Runs processes as one: when it stops, none of them is left, nor of their children.

    `say` is told in one line what happens to a process after its start. `keep_open` are file
    descriptors, a lock for one, that stay open until the last process is gone.
    """

    def __init__(
        self,
        processes: Iterable[Process],
        log: LogFile,
        say: Say,
        keep_open: tuple[int, ...] = (),
    ) -> None:
        self._guard = Guard(keep_open)
        specs = sorted(processes, key=attrgetter("stage"))
        children = [Child(spec, log, self._guard, say) for spec in specs]
        self._children = {child.spec.name: child for child in children}
        self._stages = [list(stage) for _, stage in groupby(children, attrgetter("spec.stage"))]
        self._exit = AsyncExitStack()

    async def start(self) -> None:
        """Returns when all are ready, stage after stage. Raises StartFailed, all stopped again."""
        await self._guard.start()
        self._exit.push_async_callback(self._guard.close)
        try:
            for stage in self._stages:
                self._exit.push_async_callback(_stop_all, stage)
                await _start_all(stage)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops the stages in reverse order; what does not listen is killed after its limit.

        A cancellation while it stops kills what is left, and then goes on its way.
        """
        stopping = asyncio.create_task(self._exit.aclose())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            self.kill()
            await stopping
            raise

    def kill(self) -> None:
        """Kills everything at once; `stop` still has to be awaited."""
        for child in self._children.values():
            child.kill()

    def pid(self, name: str) -> int | None:
        """The id of a process by its name; None while it is being started again."""
        return self._children[name].pid

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


async def _start_all(stage: Sequence[Child]) -> None:
    failures: list[StartFailed] = []
    try:
        async with asyncio.TaskGroup() as group:
            for child in stage:
                group.create_task(child.start())
    except* StartFailed as failed:
        failures.extend(error for error in failed.exceptions if isinstance(error, StartFailed))
    if failures:
        raise failures[0]


async def _stop_all(stage: Sequence[Child]) -> None:
    await asyncio.gather(*(child.stop() for child in stage))
