import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from posthouse.errors import ToolFailed
from posthouse.tools.fetch import Caps, WebReader
from posthouse.tools.wire import SLICE_BYTES, SPARE_BYTES

HEAD = b"HTTP/1.1 200 X\r\nContent-Type: text/plain\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def reader(site: Any) -> AsyncIterator[WebReader]:
    reader = WebReader(
        allow=lambda _: True, ports=frozenset({site.port}), caps=Caps(seconds=20, bytes=500_000)
    )
    yield reader
    await reader.aclose()


@pytest.mark.parametrize(
    ("beginning", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
        (HEAD, b"A: b\r\n"),
        (HEAD + b"A: ", b"b"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED, b"1;" + b"a" * 5000 + b"\r\nx\r\n"),
        (CHUNKED, b"0" * 15 + b"1\r\nx\r\n"),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"A: b\r\n"),
    ],
)
async def test_a_flood_around_a_text_is_cut_off(
    beginning: bytes, again: bytes, site: Any, reader: WebReader
) -> None:
    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(beginning)
        while not writer.is_closing():
            writer.write(again * 100)
            await writer.drain()

    site.answers["/"] = flood
    with pytest.raises(ToolFailed) as raised:
        await reader.read(site.url("/"))
    # By what was sent, not by the clock or by the size of the text.
    assert raised.value.kind == "http_error"


@pytest.mark.parametrize("size", [64, 1000, SLICE_BYTES, 3 * SPARE_BYTES])
async def test_a_text_in_chunks_is_read_whole(size: int, site: Any, reader: WebReader) -> None:
    text = b"x" * 3 * SPARE_BYTES
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    site.answers["/"] = b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + body + b"0\r\nA: b\r\n\r\n"
    assert (await reader.read(site.url("/"))).text == text.decode()


async def test_a_large_head_is_read(site: Any, reader: WebReader) -> None:
    site.page("/", b"text", "text/plain", headers=f"A: {'b' * (SPARE_BYTES - 1000)}\r\n")
    assert (await reader.read(site.url("/"))).text == "text"
