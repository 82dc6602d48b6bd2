"""The guard of a stack: when its supervisor is gone, whatever way it went, nothing stays behind."""

import asyncio
import os
import sys
from pathlib import Path

from posthouse.embedded import endgroups


class Guard:
    """A process that kills the groups of a stack when its supervisor is gone, however it went.

    `keep_open` are file descriptors that it holds as long as it lives.
    """

    def __init__(self, keep_open: tuple[int, ...] = ()) -> None:
        self._keep_open = keep_open
        self._read, self.pipe = os.pipe()
        self._groups: set[int] = set()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The guard is on duty from here on."""
        self._keeper = asyncio.create_task(self._keep(await self._spawn()))

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(Path(endgroups.__file__))),
            stdin=self._read,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=self._keep_open,
            start_new_session=True,
        )

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        """When somebody kills the guard, another takes its place and is told of all groups."""
        while True:
            await process.wait()
            if not self.on_duty:
                return
            process = await self._spawn()
            for group in tuple(self._groups):
                self._tell(group)

    @property
    def on_duty(self) -> bool:
        """Whether the guard still watches."""
        return self.pipe >= 0

    def add(self, group: int) -> None:
        """Remembers a group whose shell has told the guard already."""
        self._groups.add(group)

    def forget(self, group: int) -> None:
        """The group is gone, and its number may be used by others."""
        self._groups.discard(group)
        self._tell(-group)

    def _tell(self, number: int) -> None:
        if self.on_duty:
            os.write(self.pipe, f"{number}\n".encode())

    async def close(self) -> None:
        """The guard goes home; it kills what was never forgotten."""
        pipe, self.pipe = self.pipe, -1
        os.close(pipe)
        if self._keeper is not None:
            await self._keeper
        os.close(self._read)
