"""The hub: one subscription of this process to the events of every run that somebody reads here."""

import asyncio
import secrets
from collections.abc import Iterable
from typing import Any

import orjson
import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from posthouse import clock
from posthouse.errors import StorageUnavailable
from posthouse.events.log import EventLog, Logged
from posthouse.events.reader import Channel, Delta, Dropped, Item, Reader
from posthouse.storage import keys

SUBSCRIBE_AT_ONCE = 500
MESSAGES_AT_ONCE = 32
CATCH_UP_AT_ONCE = 4
FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 2.0
CONNECT_SECONDS = 5.0
LASTING_SECONDS = 1.0
CANCEL_AGAIN_SECONDS = 0.05

_log = structlog.get_logger(__name__)


class Hub:
    """Readers of event logs, fed by one pub/sub connection that comes back by itself for ever.

    `capacity` is how many items may wait for one reader before it is dropped.
    """

    def __init__(
        self, redis: Redis, *, keep_alive_seconds: float = 15.0, capacity: int = 512
    ) -> None:
        self._pool = redis.connection_pool
        self._event_log = EventLog(redis)
        self._keep_alive = keep_alive_seconds
        self._capacity = capacity
        self._channels: dict[bytes, Channel] = {}
        self._dirty: set[bytes] = set()
        self._catching_up = asyncio.Semaphore(CATCH_UP_AT_ONCE)
        self._pinging = False
        self._changed = asyncio.Event()
        self._closed = False
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    async def __aenter__(self) -> "Hub":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begins to connect; does not wait for it."""
        self._tasks = (
            asyncio.create_task(self._stay_connected(), name="hub-connection"),
            asyncio.create_task(self._keep_checking(), name="hub-check"),
        )

    async def close(self) -> None:
        """Ends every reader and disconnects; may be called again."""
        self._closed = True
        for channel in tuple(self._channels.values()):
            for reader in tuple(channel.readers):
                reader.close()
        pending = {task for task in self._tasks if not task.done()}
        while pending:  # a call of redis-py can swallow a cancellation on Python 3.11
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)

    @property
    def channels(self) -> int:
        """How many runs are read in this process now."""
        return len(self._channels)

    def reader(self, run_id: str, after: int = 0) -> Reader:
        """A reader of the run's events after seq `after`; whoever asks for it must close it."""
        key = keys.events(run_id).encode()
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(
                run_id, self._event_log, self._forget, self._catching_up
            )
            self._touch(key)
        reader = Reader(channel, after, self._capacity)
        if self._closed:
            reader.close()
        return reader

    async def wait_terminal(self, run_id: str, timeout: float, *, after: int = 0) -> bool:
        """Whether the run has ended within `timeout` seconds; events up to `after` are not read."""
        with self.reader(run_id, after) as reader:
            try:
                async with asyncio.timeout(timeout):
                    async for _ in reader:
                        pass
            except (TimeoutError, Dropped):
                return False
            return reader.ended

    async def check(self) -> None:
        """Compares readers and logs in one round trip; those that differ read on. Never raises."""
        channels = tuple(self._channels.values())
        if not channels:
            return
        try:
            seqs = await self._event_log.seqs([channel.run_id for channel in channels])
        except StorageUnavailable:
            return
        except Exception as error:  # or nobody would ever look again
            _log.warning("hub.check_failed", error=f"{type(error).__name__}: {error}")
            return
        for channel, seq in zip(channels, seqs, strict=True):
            for reader in channel.readers:
                if reader.seq != seq:
                    reader.refill()

    def _forget(self, channel: Channel) -> None:
        key = keys.events(channel.run_id).encode()
        if self._channels.get(key) is channel:
            del self._channels[key]
            self._touch(key)

    def _touch(self, key: bytes) -> None:
        self._dirty.add(key)
        self._changed.set()

    async def _keep_checking(self) -> None:
        while True:
            await clock.sleep(self._keep_alive)
            self._pinging = True
            self._changed.set()
            await self.check()

    async def _stay_connected(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while True:
            connection = self._new_connection()
            began = clock.monotonic()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await connection.connect()  # type: ignore[no-untyped-call]
                await self._serve(connection)
            except* Exception as errors:  # whatever it was, the readers are still there
                _log.warning("hub.disconnected", error=_first(errors))
            finally:
                for channel in self._channels.values():
                    channel.disconnect()
                await connection.disconnect(nowait=True)
            if clock.monotonic() - began > LASTING_SECONDS:
                delay = FIRST_DELAY_SECONDS
            await clock.sleep(delay * (0.5 + secrets.randbelow(1000) / 1000))
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    def _new_connection(self) -> AbstractConnection:
        """One beside the pool, as it never goes back there; `_listen` has a timeout of its own."""
        options = self._pool.connection_kwargs | {"socket_timeout": None}
        made: AbstractConnection = self._pool.connection_class(**options)
        return made

    async def _serve(self, connection: AbstractConnection) -> None:
        self._dirty.update(self._channels)
        self._changed.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(connection))
            tasks.create_task(self._listen(connection))

    async def _write(self, connection: AbstractConnection) -> None:
        subscribed: set[bytes] = set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            dirty, self._dirty = self._dirty, set()
            left = [key for key in dirty if key not in self._channels and key in subscribed]
            wanted = [key for key in dirty if self._ask(key)]
            subscribed.difference_update(left)
            subscribed.update(wanted)
            for name, names in (("UNSUBSCRIBE", left), ("SUBSCRIBE", wanted)):
                for start in range(0, len(names), SUBSCRIBE_AT_ONCE):
                    part = names[start : start + SUBSCRIBE_AT_ONCE]
                    await connection.send_command(name, *part, check_health=False)
            if self._pinging:
                self._pinging = False
                await connection.send_command("PING", check_health=False)

    def _ask(self, key: bytes) -> bool:
        channel = self._channels.get(key)
        if channel is None or channel.asked:
            return False
        channel.asked = True
        return True

    async def _listen(self, connection: AbstractConnection) -> None:
        at_once = 0
        while True:
            reply = await connection.read_response(
                timeout=2 * self._keep_alive + 1, disconnect_on_error=False, push_request=True
            )
            if reply is None:
                raise StorageUnavailable("the subscription has gone silent")
            self._hear(reply)
            at_once += 1
            if at_once % MESSAGES_AT_ONCE == 0:
                await clock.sleep(0)  # a burst that is already here must not starve its readers

    def _hear(self, reply: Any) -> None:
        match reply:
            case [b"message", bytes(key), bytes(text)]:
                if (channel := self._channels.get(key)) is not None:
                    channel.deliver(tuple(_items(text)))
            case [b"subscribe", bytes(key), _]:
                if (channel := self._channels.get(key)) is not None:
                    channel.confirm()
            case _:
                pass  # an answer to PING or UNSUBSCRIBE


def _items(text: bytes) -> Iterable[Item]:
    """The envelopes of one message; what cannot be read is left to the log."""
    for line in text.split(b"\n"):
        try:
            fields = orjson.loads(line)
            kind, run_id, epoch = fields["type"], fields["run_id"], fields["epoch"]
            seq = fields.get("seq")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            continue
        if seq is None:
            yield Delta(kind, run_id, epoch, line)
        else:
            yield Logged(seq, kind, run_id, epoch, line)


def _first(errors: BaseExceptionGroup[Exception]) -> str:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
