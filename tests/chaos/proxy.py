"""A TCP proxy in front of Redis that resets, falls silent, delays, and cuts after the request before the reply."""

import asyncio
import contextlib
from dataclasses import dataclass, field

_IDLE_WORDS = (b"BLPOP", b"SUBSCRIBE", b"PING")


@dataclass(eq=False)
class Link:
    """One connection through the proxy; `open_call` while a request is forwarded and not answered."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    open_call: bool = False
    cut: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """Ends both sides at once, without a word."""
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Forwards to one port; what it does to the traffic may be changed at any time."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._links: set[Link] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.delay_seconds = 0.0
        self.cuts_left = 0
        self.cut_calls = 0
        self.held_back = 0
        self.delayed = 0

    async def start(self, port: int) -> None:
        """Listens."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, backlog=512)

    async def close(self) -> None:
        """Listens no more and ends every connection."""
        if self._server is not None:
            self._server.close()
        self.reset_all()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    @property
    def calls_in_flight(self) -> int:
        """Requests that were forwarded and not yet answered; those that wait by nature do not count."""
        return sum(link.open_call for link in self._links)

    def reset_all(self) -> int:
        """Resets every connection; says how many had a call in flight."""
        hit = self.calls_in_flight
        for link in list(self._links):
            link.reset()
        return hit

    def silence(self) -> None:
        """Forwards nothing any more, in either direction; connections stay."""
        self._flowing.clear()

    def resume(self) -> None:
        """Forwards again, what was held back first."""
        self._flowing.set()

    def cut_next(self, calls: int) -> None:
        """The next so many requests reach Redis; their replies are dropped and their connections closed."""
        self.cuts_left = calls

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, forth)
        self._links.add(link)
        pumps = [
            asyncio.create_task(self._forward(link, reader)),
            asyncio.create_task(self._back(link, back)),
        ]
        self._pumps.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        self._links.discard(link)
        link.reset()
        for pump in pumps:
            pump.cancel()
            self._pumps.discard(pump)

    async def _forward(self, link: Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._gate()
                waits = any(word in data[:64] for word in _IDLE_WORDS)
                link.open_call = not waits
                if self.cuts_left > 0 and b"EVALSHA" in data[:64]:
                    self.cuts_left -= 1
                    link.cut = True
                link.server.write(data)
                await link.server.drain()

    async def _back(self, link: Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._gate()
                if link.cut:
                    self.cut_calls += 1
                    return
                if self.delay_seconds:
                    self.delayed += link.open_call
                    await asyncio.sleep(self.delay_seconds)
                link.open_call = False
                link.client.write(data)
                await link.client.drain()

    async def _gate(self) -> None:
        if not self._flowing.is_set():
            self.held_back += 1
            await self._flowing.wait()
