"""What a client can do to a connection, below HTTP."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn

from api_app.server import PatientProtocol

LIMIT = 10
SIZE = 20_000_000


class Hasty(PatientProtocol):
    head_seconds = 0.3
    take_seconds = 0.2


class Source:
    """Answers with more than any buffer holds; `left` is set when its client has gone."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(SIZE), "more_body": False})
        assert (await receive())["type"] == "http.disconnect"
        self.left.set()


@pytest.fixture
def serve_raw() -> Callable:
    """Serves an ASGI application with a hasty protocol; gives the port."""

    @asynccontextmanager
    async def serving(app) -> AsyncIterator[int]:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=Hasty, ws="none", lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(LIMIT):
            yield listener.getsockname()[1]
            server.should_exit = True
            await task

    return serving


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ended without a word."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_head_that_never_comes_is_not_waited_for(serve_raw, sent):
    async with serve_raw(Source()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert await ended(reader)
        writer.close()


async def test_a_head_without_an_end_is_cut(serve_raw):
    async with serve_raw(Source()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n")
        writer.write((b"X: " + b"a" * 1000 + b"\r\n") * 100)
        assert await ended(reader)
        writer.close()


async def test_a_client_that_takes_nothing_is_left(serve_raw):
    source = Source()
    async with serve_raw(source) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await source.left.wait()
        writer.close()
    assert not reader.at_eof()


async def test_a_client_that_takes_is_served_to_the_end(serve_raw):
    async with serve_raw(Source()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        taken = 0
        while part := await reader.read(100_000):
            taken += len(part)
        writer.close()
    assert taken > SIZE
