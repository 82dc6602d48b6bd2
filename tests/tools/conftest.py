"""A call's context, packages to import, and a small web site on this machine that counts who connects."""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from posthouse.tools.model import Page, Resources, SearchHit, ToolContext


@dataclass
class Library:
    """A search provider and page reader that answer from memory and keep what they were asked."""

    hits: tuple[SearchHit, ...] = ()
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)

    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        self.asked.append((query, limit))
        return self.hits

    async def read(self, address: str) -> Page:
        return self.pages[address]


@pytest.fixture
def shelf() -> Library:
    return Library()


@pytest.fixture
def importable(tmp_path: Path) -> Iterator[Callable[..., ModuleType]]:
    """Writes a package of the given modules and imports it; all is forgotten after the test."""

    def write(name: str, **modules: str) -> ModuleType:
        (tmp_path / name).mkdir()
        for module, text in {"__init__": "", **modules}.items():
            (tmp_path / name / f"{module}.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    known = set(sys.modules)
    sys.path.insert(0, str(tmp_path))
    yield write
    sys.path.remove(str(tmp_path))
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.fixture
def context(shelf: Library) -> ToolContext:
    return ToolContext("run", "agent/tool:1", "key", Resources(search=shelf, pages=shelf))


Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Site:
    """Answers GET by path; a path is given bytes, or a function that writes them."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Handler] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        self.port = 0
        self._open: set[asyncio.Task[None]] = set()

    def page(
        self, path: str, body: bytes, kind: str = "text/html", status: int = 200, headers: str = ""
    ) -> None:
        """Sets a whole answer."""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        self.answers[path] = f"{head}{headers}\r\n".encode() + body

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while True:
                await self._answer_one(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._open.discard(task)

    async def hang_up(self) -> None:
        """Ends every connection."""
        tasks = tuple(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = lines[0].split(" ")[1]
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        self.requests.append((path, headers))
        answer = self.answers.get(path, b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
        if isinstance(answer, bytes):
            writer.write(answer)
            await writer.drain()
        else:
            await answer(writer)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        yield site
        server.close()
        await site.hang_up()
