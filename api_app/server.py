"""The server: uvicorn that ends its event streams before it stops."""

import asyncio
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api_app.stream import ABORT

GRACE_SECONDS = 1
HEAD_SECONDS = 15.0
HEAD_BYTES = 64 * 1024
TAKE_SECONDS = 60.0


class PatientProtocol(HttpToolsProtocol):
    """Ends a connection whose client sends no whole head, or takes nothing of what was written.

    The application can end one as well.
    """

    head_seconds = HEAD_SECONDS
    take_seconds = TAKE_SECONDS
    _head_timer: asyncio.TimerHandle | None = None
    _take_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_head()
        self._stop_taking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The client sends something."""
        super().data_received(data)
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        extensions: dict[str, Any] = {ABORT: self.transport.abort}
        self.scope["extensions"] = extensions
        self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._stop_head()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """What was written piles up."""
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        """The client took most of it."""
        self._stop_taking()
        super().resume_writing()

    def _expect_head(self) -> None:
        self._stop_head()
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _expect_taking(self) -> None:
        self._stop_taking()
        left = self.transport.get_write_buffer_size()
        self._take_timer = self.loop.call_later(self.take_seconds, self._end_unless_taken, left)

    def _end_unless_taken(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._expect_taking()
        else:
            self.transport.abort()

    def _stop_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = None

    def _stop_taking(self) -> None:
        if self._take_timer is not None:
            self._take_timer.cancel()
        self._take_timer = None


class Server(uvicorn.Server):
    """Stops within about two seconds, also with open streams: their readers come back by id."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the streams, then everything else."""
        await self._app.state.service.hub.close()
        await super().shutdown(sockets)


def make_server(app: FastAPI, host: str, port: int) -> Server:
    """A server of the application that writes no access log; `run` it, or await its `serve`."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return Server(config, app)
