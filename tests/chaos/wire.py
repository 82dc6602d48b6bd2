"""HTTP/1.1 as small as it gets, for what the harness itself serves and asks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import orjson

Answer = bytes | AsyncIterator[bytes]
Handler = Callable[[Any], Awaitable[Answer]]

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nConnection: close\r\n%b\r\n"


async def post(url: str, body: Any) -> dict[str, Any]:
    """The JSON answer to a POST of JSON. Raises OSError when the server is not there."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        payload = orjson.dumps(body)
        head = f"POST {parts.path or '/'} HTTP/1.1\r\nContent-Length: {len(payload)}\r\n\r\n"
        writer.write(head.encode() + payload)
        answer = await reader.read()
    finally:
        writer.close()
    _, _, text = answer.partition(b"\r\n\r\n")
    if not text:
        raise ConnectionError("the server closed the connection")
    found: dict[str, Any] = orjson.loads(text)
    return found


async def serve(handler: Handler, port: int) -> asyncio.Server:
    """A server whose handler gets each request's JSON; an answer in pieces is sent as server-sent events."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            await _answer(writer, await handler(orjson.loads(await _body(reader, head))))
        writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", port, backlog=512)


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return await reader.readexactly(int(value))
    return b"null"


async def _answer(writer: asyncio.StreamWriter, answer: Answer) -> None:
    if isinstance(answer, bytes):
        length = b"Content-Length: %d\r\n" % len(answer)
        _check_open(writer)
        writer.write(_HEAD % (b"application/json", length) + answer)
    else:
        _check_open(writer)
        writer.write(_HEAD % (b"text/event-stream", b""))
        async for piece in answer:
            _check_open(writer)
            writer.write(piece)
            await writer.drain()
    await writer.drain()


def _check_open(writer: asyncio.StreamWriter) -> None:
    # uvloop has an error of its own for a client that was killed meanwhile.
    if writer.is_closing():
        raise ConnectionResetError
