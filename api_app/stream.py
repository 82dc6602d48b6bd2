"""Event streams (SSE), written to the socket without a framework in between."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api_app.service import Service
from posthouse.errors import NotFound, StorageUnavailable
from posthouse.events.log import Logged
from posthouse.events.reader import Delta, Dropped, Item, Reader
from posthouse.events.types import TERMINAL_TYPES

# In the scope of our own server: ends a connection whose client takes nothing more.
ABORT = "posthouse.abort"

RETRY = b"retry: 2000\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}

Frames: TypeAlias = Callable[[Sequence[Item]], Awaitable[bytes]]


class NativeFrames:
    """Frames of the envelopes themselves, of all types or of some; text in between has no id.

    Of an end that is not wanted the bare id goes out: who comes back with it is told to stop.
    """

    def __init__(self, types: frozenset[str] | None = None) -> None:
        self._types = types

    async def __call__(self, items: Sequence[Item]) -> bytes:
        """The frames of the items that are wanted."""
        types = self._types
        if types is None:
            return b"".join(map(_frame, items))
        return b"".join(_frame(item) if item.type in types else _bare_end(item) for item in items)


def _bare_end(item: Item) -> bytes:
    if isinstance(item, Logged) and item.type in TERMINAL_TYPES:
        return b"id: %d\n\n" % item.seq
    return b""


def _frame(item: Item) -> bytes:
    kind = item.type.encode()
    match item:
        case Logged():
            return b"id: %d\nevent: %b\ndata: %b\n\n" % (item.seq, kind, item.envelope)
        case Delta():
            return b"event: %b\ndata: %b\n\n" % (kind, item.envelope)


class EventStream(Response):
    """The events of one run after a seq, until the run ends, the client leaves or we stop."""

    media_type = None

    def __init__(self, service: Service, run_id: str, after: int, frames: Frames) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._service = service
        self._run_id = run_id
        self._after = after
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Writes the response."""
        self._service.metrics.stream_opened()
        with self._service.hub.reader(self._run_id, self._after) as reader:
            leaving = asyncio.create_task(_close_when_left(receive, reader))
            try:
                async with asyncio.timeout(None) as limit:
                    writer = _Writer(send, reader, limit, self._service)
                    await self._write(writer)
            except TimeoutError:
                abort = scope.get("extensions", {}).get(ABORT)
                if abort is not None:
                    abort()
            finally:
                leaving.cancel()
                self._service.metrics.stream_closed()

    async def _write(self, writer: "_Writer") -> None:
        with writer:
            await writer.start(self.status_code, self.raw_headers)
            try:
                while (items := await writer.reader.take()) is not None:
                    await writer.write(await self._frames(items) if items else KEEP_ALIVE)
            except (Dropped, NotFound, StorageUnavailable):
                pass  # the client comes back with the last id that it has
            await writer.end()


async def _close_when_left(receive: Receive, reader: Reader) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.close()


class _Writer:
    """One timer for both: a comment when nothing was written, an end when nothing is taken."""

    def __init__(
        self, send: Send, reader: Reader, limit: asyncio.Timeout, service: Service
    ) -> None:
        self.reader = reader
        self._send = send
        self._limit = limit
        self._keep_alive = service.keep_alive_seconds
        self._patience = service.write_seconds
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._look()

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        allowed = self._patience if self._writing else self._keep_alive
        left = self._since + allowed - self._loop.time()
        if left <= 0 and self._writing:
            self._limit.reschedule(self._loop.time())
            return
        if left <= 0:
            self.reader.nudge()
            left = self._keep_alive
        self._timer = self._loop.call_later(min(left, self._patience), self._look)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Sends the headers and the first line, so that the client knows that it is connected."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self.write(RETRY)

    async def write(self, text: bytes) -> None:
        """Sends the text; waits while the client takes nothing."""
        if text:
            self._since, self._writing = self._loop.time(), True
            await self._send({"type": "http.response.body", "body": text, "more_body": True})
            self._since, self._writing = self._loop.time(), False

    async def end(self) -> None:
        """Ends the response."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
