"""What a client can do to a connection, below HTTP."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from redis.asyncio import Redis

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


async def started(folder: Path, **settings: str) -> asyncio.subprocess.Process:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | settings
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api_app", cwd=folder, env=env, stderr=asyncio.subprocess.PIPE
    )  # fmt: skip


async def test_no_server_starts_on_a_redis_that_may_lose_runs(
    tmp_path: Path, valkey: Any, free_tcp_port: int
) -> None:
    async with Redis.from_url(valkey.url) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
    given = {"REDIS_URL": valkey.url, "POSTHOUSE_PORT": str(free_tcp_port)}
    process = await started(tmp_path, **given)
    _, text = await process.communicate()
    assert text.startswith(b"posthouse: the Redis of REDIS_URL may throw runs away")
    assert (text.count(b"\n"), process.returncode) == (1, 2)

    process = await started(tmp_path, **given, POSTHOUSE_UNSAFE_REDIS="1")
    text = b""
    async with asyncio.timeout(LIMIT):
        assert process.stderr is not None
        while b"running on" not in (line := await process.stderr.readline()):
            assert line, text
            text += line
        process.terminate()
        await process.communicate()
    assert b'"redis_unfit"' in text
    assert process.returncode == 0
