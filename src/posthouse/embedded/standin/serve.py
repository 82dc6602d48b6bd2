"""Runs the stand-in model: in the loop that is there, or until it is told to stop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.types import ASGIApp

from posthouse.embedded.standin.app import create_app


class StandinServer(uvicorn.Server):
    """A server on one listening socket, which stops at once and leaves signals alone."""

    def __init__(self, app: ASGIApp, listening: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._listening = listening

    def stop(self) -> None:
        """Makes `run_until_stopped` return soon; streams in flight are dropped."""
        self._stopping.set()

    async def run_until_stopped(self) -> None:
        """Serves until `stop` is called."""
        await self.serve(sockets=[self._listening])

    async def main_loop(self) -> None:
        """Waits for the stop, where the original looks ten times a second."""
        self.ready.set()
        await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drops every connection, whatever is in flight on it, and stops listening."""
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to whoever runs the server."""
        yield


@contextlib.asynccontextmanager
async def serve_standin(
    port: int = 0, *, latency_ms: float = 0, token_ms: float = 0
) -> AsyncIterator[str]:
    """A stand-in in the running loop; gives its URL, `http://127.0.0.1:<port>` without `/v1`.

    Raises OSError: the port is taken.
    """
    listening = listen("127.0.0.1", port)
    server = StandinServer(create_app(latency_ms, token_ms), listening)
    serving = asyncio.create_task(server.run_until_stopped())
    try:
        yield url_of(listening)
    finally:
        server.stop()
        await serving


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off (40 ms a request) only where the protocol is given.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def url_of(listening: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
