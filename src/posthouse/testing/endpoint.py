"""A model's endpoint that answers as it is told, faults on the wire included, for tests of providers and runs."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import orjson
from pydantic import JsonValue

from posthouse.storage.ending import ended

_CHUNKED = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}


@dataclass(frozen=True)
class Reply:
    """The bytes that one request gets; then the connection closes, or stays open and silent."""

    raw: bytes = b""
    silent: bool = False


class ModelEndpoint:
    """A server on loopback that gives each request the next reply, and the last one for ever.

    `requests` are the bodies that came, in their order. Without a reply it takes no connection.
    """

    def __init__(self, *replies: Reply) -> None:
        self._replies = replies
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.requests: list[JsonValue] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        if not self._replies:
            self._server.close()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        await ended(self._serving)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client went.
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split()[0])
        self.requests.append(orjson.loads(await reader.readexactly(length)))
        reply = self._replies[min(len(self.requests), len(self._replies)) - 1]
        writer.write(reply.raw)
        await writer.drain()
        if reply.silent:
            await reader.read()


def answered(
    status: int, body: bytes, headers: Mapping[str, str] | None = None, *, reason: str = "Said"
) -> Reply:
    """A whole answer of any kind."""
    return Reply(
        _head(status, reason, {"Content-Length": str(len(body)), **(headers or {})}) + body
    )


def refused(
    status: int,
    code: str = "",
    *,
    message: str = "",
    headers: Mapping[str, str] | None = None,
    reason: str = "Refused",
) -> Reply:
    """An error answer as OpenAI writes it."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    named = {"Content-Type": "application/json", **(headers or {})}
    return answered(status, orjson.dumps({"error": error}), named, reason=reason)


def streamed(
    *chunks: JsonValue, whole: bool = True, headers: Mapping[str, str] | None = None
) -> Reply:
    """An event stream of chunks, texts as they are; one that is not `whole` breaks off after them."""
    texts = [c if isinstance(c, str) else orjson.dumps(c).decode() for c in chunks]
    parts = [f"data: {text}\n\n".encode() for text in texts]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    end = b"0\r\n\r\n" if whole else b""
    return Reply(_head(200, "OK", {**_CHUNKED, **(headers or {})}) + framed + end)


def chunk(finish: str | None = None, **delta: JsonValue) -> JsonValue:
    """One piece of an answer; `delta` as in OpenAI's chunks."""
    choice: JsonValue = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def said(text: str, *, finish: str = "stop", headers: Mapping[str, str] | None = None) -> Reply:
    """An answer in words."""
    return streamed(chunk(content=text), chunk(finish), "[DONE]", headers=headers)


def called(name: str, arguments: str, *, headers: Mapping[str, str] | None = None) -> Reply:
    """An answer that asks for one tool; `arguments` is any text."""
    function: JsonValue = {"name": name, "arguments": arguments}
    call: JsonValue = {"index": 0, "id": "call", "type": "function", "function": function}
    parts = (chunk(tool_calls=[call]), chunk("tool_calls"), "[DONE]")
    return streamed(*parts, headers=headers)


def _head(status: int, reason: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()
