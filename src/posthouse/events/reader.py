"""One reader's view of one run: the log is the truth, what is pushed only saves reading it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Self, TypeAlias

from posthouse import clock
from posthouse.errors import PosthouseError, StorageUnavailable
from posthouse.events.log import EventLog, Logged, Page
from posthouse.events.types import TERMINAL_TYPES

READ_AGAIN_SECONDS = 1.0
# Small, so that a reader that takes nothing holds little, and one far behind holds nobody up.
READ_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Delta:
    """A pushed envelope that is in no log and so has no seq."""

    type: str
    run_id: str
    epoch: int
    envelope: bytes


Item: TypeAlias = Logged | Delta


class Dropped(PosthouseError):
    """The reader fell too far behind, or the log was cut back; it may resume after its last seq."""


class _Over(Enum):
    ENDED = auto()
    CLOSED = auto()
    DROPPED = auto()


class Channel:
    """The readers of one run in this process, and the reading of its log that they share."""

    def __init__(
        self,
        run_id: str,
        log: EventLog,
        abandoned: Callable[["Channel"], None],
        catching_up: asyncio.Semaphore,
    ) -> None:
        self.run_id = run_id
        self.catching_up = catching_up
        self.readers: set[Reader] = set()
        self.asked = False
        self.confirmed = False
        self._log = log
        self._abandoned = abandoned
        self._epochs: dict[str, int] = {}
        self._pages: dict[int, asyncio.Task[Page]] = {}
        self._reading: set[asyncio.Task[Page]] = set()

    def confirm(self) -> None:
        """The subscription stands from now on: whatever came before it is in the log."""
        self.confirmed = True
        for reader in self.readers:
            reader.refill()

    def disconnect(self) -> None:
        """The subscription is gone until it is confirmed again."""
        self.asked = self.confirmed = False

    def deliver(self, items: Sequence[Item]) -> None:
        """Gives every reader what was pushed, but no text of a worker that was replaced since."""
        current = [item for item in items if self._is_current(item)]
        for reader in self.readers:
            reader.offer(current)

    def _is_current(self, item: Item) -> bool:
        known = self._epochs.get(item.run_id, 0)
        if item.epoch < known:
            return isinstance(item, Logged)
        self._epochs[item.run_id] = item.epoch
        return True

    def leave(self, reader: "Reader") -> None:
        """The reader wants nothing more."""
        self.readers.discard(reader)
        if not self.readers:
            self._abandoned(self)

    async def page(self, after: int) -> Page:
        """The log after `after`; askers at one moment share it. Raises StorageUnavailable."""
        task = self._pages.get(after)
        if task is None:
            task = self._pages[after] = asyncio.create_task(self._read(after))
            self._reading.add(task)
            task.add_done_callback(self._was_read)
        return await asyncio.shield(task)

    async def _read(self, after: int) -> Page:
        await clock.sleep(0)  # so that everybody woken by the same message can join
        del self._pages[after]  # whoever asks from here on may know of something newer
        return await self._log.page(self.run_id, after, READ_LIMIT)

    def _was_read(self, task: asyncio.Task[Page]) -> None:
        self._reading.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when every reader has left meanwhile

    async def was_cut(self, seq: int) -> bool:
        """Whether the log ends before `seq`: its tail was lost. Raises StorageUnavailable."""
        return await self._log.last_seq(self.run_id) < seq


class Reader:
    """The events of one run after a seq, each once and in order, until the run has ended.

    Iterating ends with the run, with `close`, or with the hub; it raises Dropped when the reader
    is too slow.
    """

    __slots__ = (
        "_answered", "_asked", "_behind", "_buffer", "_capacity", "_channel", "_nudged", "_over",
        "_resting", "_retry", "_waiter", "seq",
    )  # fmt: skip

    def __init__(self, channel: Channel, after: int, capacity: int) -> None:
        self.seq = after
        self._channel = channel
        self._capacity = capacity
        self._buffer: list[Item] = []
        self._asked = 1  # readings of the log that were wanted, and below, that were made
        self._answered = 0
        self._resting = not channel.confirmed
        self._nudged = self._behind = False
        self._over: _Over | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        channel.readers.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        """The next item."""
        items = await self.take()
        while items is not None:
            if items:
                self._buffer[:0] = items[1:]
                return items[0]
            items = await self.take()
        raise StopAsyncIteration

    @property
    def ended(self) -> bool:
        """Whether the run has ended and every event of it was handed out."""
        return self._over is _Over.ENDED and not self._buffer

    async def take(self) -> list[Item] | None:
        """What is there, or waits for it; [] after a nudge, None at the end. Raises Dropped."""
        while True:
            if self._over is _Over.DROPPED:
                raise Dropped("this reader is too far behind; resume after the last seq received")
            if self._buffer:
                items, self._buffer = self._buffer, []
                return items
            if self._over is not None:
                return None
            if self._asked > self._answered and not self._resting:
                await self._read_on()
            elif self._nudged:
                self._nudged = False
                return []
            else:
                await self._wait()

    def offer(self, items: Sequence[Item]) -> None:
        """Takes what was pushed as far as it is the next; the log is read for anything else."""
        if self._over is not None:
            return
        for item in items:
            if isinstance(item, Delta):
                if self._asked == self._answered:
                    self._buffer.append(item)
            elif item.seq == self.seq + 1:
                self._accept(item)
            elif item.seq > self.seq:
                self._asked += 1
        if len(self._buffer) > self._capacity:
            self._finish(_Over.DROPPED)
        self._wake()

    def refill(self) -> None:
        """The log may have more than was pushed, so it is read."""
        self._asked += 1
        self._resting = False
        self._wake()

    def nudge(self) -> None:
        """Makes a waiting `take` return."""
        self._nudged = True
        self._wake()

    def close(self) -> None:
        """Ends the iteration and lets go of the run; may be called again."""
        self._finish(_Over.CLOSED)
        self._channel.leave(self)
        self._wake()

    def _accept(self, item: Logged) -> None:
        self._buffer.append(item)
        self.seq = item.seq
        if item.type in TERMINAL_TYPES and item.run_id == self._channel.run_id:
            self._asked += 1  # the log says whether this was the end or a retry followed

    async def _read_on(self) -> None:
        """Reads a page; of all readers with a full one behind them only a few at a time."""
        if not self._behind:
            await self._read()
            return
        async with self._channel.catching_up:
            await self._read()

    async def _read(self) -> None:
        asked, after = self._asked, self.seq
        try:
            page = await self._channel.page(after)
            cut = page.seq < after and not page.events and await self._channel.was_cut(after)
        except StorageUnavailable:
            self._rest()
            return
        if self._over is not None:
            return
        if cut and not page.missing:
            self._finish(_Over.DROPPED)
            return
        unchanged = self._asked == asked
        for event in page.events:
            if event.seq > self.seq:
                self._accept(event)
        self._behind = len(page.events) == READ_LIMIT
        whole = unchanged and not self._behind
        self._answered = self._asked if whole else asked
        self._asked = self._answered + (not whole)
        if page.missing or (whole and page.ended and self.seq <= page.seq):
            self._finish(_Over.ENDED)

    def _rest(self) -> None:
        self._resting = True
        if self._channel.confirmed and self._over is None:  # else the next confirmation says when
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(READ_AGAIN_SECONDS, self.refill)

    def _finish(self, over: _Over) -> None:
        self._over = self._over or over
        if self._retry is not None:
            self._retry.cancel()
        if over is not _Over.ENDED:
            self._buffer.clear()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
