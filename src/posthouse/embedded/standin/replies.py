"""Sending an answer: at its pace, with the fault that it was told, until the reader is gone."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from posthouse import clock
from posthouse.embedded.standin.script import (
    Behaviour,
    Corrupt,
    Delay,
    Disconnect,
    Pace,
    Record,
    Truncate,
)
from posthouse.embedded.standin.wire import Stream

SSE, JSON = "text/event-stream", "application/json"
_BROKEN = b'data: {"id":"chatcmpl-","object":"chat.completion.chunk","choices":[{"ind\n\n'


@dataclass(frozen=True)
class Reply:
    """An ASGI answer of 200; marks its record finished once everything was sent."""

    stream: Stream
    media_type: str
    pace: Pace
    behaviour: Behaviour | None
    gate: asyncio.Event | None
    record: Record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer, all of it at once where nothing asks for anything else."""
        if self.behaviour is None and not self.pace.latency_ms and not self.pace.token_ms:
            await self._start(send)
            await self._end(
                send, b"".join((self.stream.opening, *self.stream.pieces, self.stream.closing))
            )
        else:
            await _until_gone(receive, self._play(send))

    async def _play(self, send: Send) -> None:
        extra = self.behaviour.seconds if isinstance(self.behaviour, Delay) else 0
        await clock.sleep(self.pace.latency_ms / 1000 + extra)
        await self._start(send)
        await _send(send, self.stream.opening)
        pieces = self.stream.pieces
        cut = min(_fault_after(self.behaviour), len(pieces))
        for index, piece in enumerate(pieces[:cut]):
            if index and self.pace.token_ms:
                await clock.sleep(self.pace.token_ms / 1000)
            await _send(send, piece)
            if index == 0:
                await self._hold()
        match self.behaviour:
            case Disconnect():
                return  # an answer without an end makes the server close the connection
            case Truncate():
                await _send(send, b"", more=False)
                return
            case Corrupt():
                await _send(send, _BROKEN)
            case _:
                pass
        await self._end(send, b"".join((*pieces[cut:], self.stream.closing)))

    async def _hold(self) -> None:
        if self.gate is not None:
            self.record.held = True
            try:
                await self.gate.wait()
            finally:
                # Also when its reader is gone.
                self.record.held = False

    async def _start(self, send: Send) -> None:
        self.record.status = 200
        headers = [(b"content-type", self.media_type.encode()), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _end(self, send: Send, body: bytes) -> None:
        await _send(send, body, more=False)
        self.record.finished = True


def _fault_after(behaviour: Behaviour | None) -> int:
    match behaviour:
        case Truncate() | Corrupt() | Disconnect():
            return behaviour.after_chunks
        case _:
            return 1 << 31


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _until_gone(receive: Receive, playing: Coroutine[None, None, None]) -> None:
    """Runs `playing` to its end, or until the reader has closed the connection."""
    tasks = (asyncio.ensure_future(playing), asyncio.ensure_future(_gone(receive)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
