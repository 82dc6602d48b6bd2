"""Probes: whether a process is ready for work. They never raise and take a second at most."""

import asyncio
from collections.abc import Awaitable, Callable

Probe = Callable[[], Awaitable[bool]]

_LIMIT_SECONDS = 1.0


def answers_http(host: str, port: int, path: str) -> Probe:
    """Ready when a GET of the path is answered with 200."""
    request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()

    async def probe() -> bool:
        return (await _first_line(host, port, request)).split()[1:2] == [b"200"]

    return probe


def answers_ping(host: str, port: int) -> Probe:
    """Ready when Redis answers PING; while it loads its data it does not."""

    async def probe() -> bool:
        return (await _first_line(host, port, b"PING\r\n")).rstrip() == b"+PONG"

    return probe


async def _first_line(host: str, port: int, request: bytes) -> bytes:
    """The first line of the answer; empty when there is none."""
    try:
        async with asyncio.timeout(_LIMIT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                return await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return b""
