"""Our arq worker: it picks and claims in one script, is woken by a push, and outlives every outage of Redis."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
import structlog
from arq.connections import RedisSettings
from arq.worker import Worker, func
from redis.asyncio import Redis
from redis.exceptions import RedisError

from posthouse.errors import StorageUnavailable
from posthouse.storage import keys
from posthouse.storage.connect import available

log = structlog.get_logger()

# The poll is only the net: it finds what a lost wake-up left.
NET_SECONDS = 5.0
A_YEAR = 365 * 86_400
PICK_LIMIT = 32


class Carrier(Protocol):
    """What takes runs from the queue and carries them; the engine."""

    async def pick(self, limit: int) -> list[asyncio.Task[None]]:
        """Claims up to `limit` runs and starts to carry them."""
        ...

    def begin_drain(self) -> None:
        """Lets no further step begin."""
        ...

    async def drain(self, limit: float) -> None:
        """Gives back what is carried, after at most `limit` seconds and the time that this takes."""
        ...


class FleetWorker(Worker):
    """An arq worker whose loop is ours. `wake` is a client of its own, since it blocks."""

    def __init__(
        self, carrier: Carrier, wake: Redis, *, slots: int, drain_seconds: float, **options: Any
    ) -> None:
        super().__init__(**options, max_jobs=slots, queue_name=keys.QUEUE)
        self._carrier = carrier
        self._wake = wake
        self._drain_seconds = drain_seconds
        self._stopping = asyncio.Event()
        self._freed = asyncio.Event()

    async def main(self) -> None:
        """Takes runs until a signal says to stop."""
        pause = 0.05
        while not self._stopping.is_set():
            asked = min(self.max_jobs - len(self.tasks), PICK_LIMIT)
            if asked <= 0:
                await self._until(self._freed)
                continue
            try:
                started = await self._carrier.pick(asked)
                pause = 0.05
            except StorageUnavailable:
                pause = min(pause * 2, 2.0)
                await self._rest(pause)
                continue
            except Exception:
                log.exception("pick_broke")
                await self._rest(2.0)
                continue
            for task in started:
                self._keep(task)
            if len(started) < asked:
                await self._woken()
        # A token that came together with the signal is for another worker.
        await self._pass_on()

    def _keep(self, task: asyncio.Task[None]) -> None:
        name = task.get_name()
        self.tasks[name] = task

        def free(_: asyncio.Task[None]) -> None:
            if self.tasks.get(name) is task:
                del self.tasks[name]
            self._freed.set()

        task.add_done_callback(free)

    async def _until(self, event: asyncio.Event) -> None:
        waiters = [asyncio.ensure_future(one.wait()) for one in (event, self._stopping)]
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
        event.clear()

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _woken(self) -> None:
        pop = asyncio.ensure_future(self._pop())
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([pop, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not pop.done():
                pop.cancel()
                await asyncio.wait([pop])

    async def _pop(self) -> None:
        try:
            with available():
                await self._wake.execute_command("BLPOP", keys.WAKE, NET_SECONDS)  # type: ignore[no-untyped-call]
        except StorageUnavailable:
            await self._rest(0.1)
        except RedisError:
            log.exception("wake_refused")
            await self._rest(NET_SECONDS)

    async def _pass_on(self) -> None:
        # A pop that is cancelled while its token arrives has eaten it.
        try:
            with available():
                await self._wake.execute_command("LPUSH", keys.WAKE, "1")  # type: ignore[no-untyped-call]
        except StorageUnavailable:
            return

    def handle_sig(self, signum: signal.Signals) -> None:
        """Stops to take runs; a second signal ends the process at once."""
        if self._stopping.is_set():
            # Not by an exception: whatever is under way would first be given back, and that waits for Redis.
            os._exit(1)
        log.info("stopping", signal=signal.Signals(signum).name, running=len(self.tasks))
        self.stop()

    def stop(self) -> None:
        """Lets `main` return; nothing more is taken, and no further step begins."""
        self._carrier.begin_drain()
        self._stopping.set()

    async def close(self) -> None:
        """Gives everything back and lets go of Redis."""
        await self._carrier.drain(self._drain_seconds)
        await self._wake.aclose()


ExecuteRun = Callable[[dict[Any, Any], str, int], Awaitable[None]]


def fleet_worker(
    carrier: Carrier,
    wake: Redis,
    execute_run: ExecuteRun,
    *,
    slots: int,
    drain_seconds: float,
    signals: bool = True,
) -> FleetWorker:
    """The worker around a carrier; to be made inside a running event loop, since arq binds it and the signals."""
    functions = [func(execute_run, name="execute_run")]  # type: ignore[arg-type]
    return FleetWorker(
        carrier,
        wake,
        slots=slots,
        drain_seconds=drain_seconds,
        functions=functions,
        handle_signals=signals,
    )


def stock_settings(
    redis_url: str, execute_run: ExecuteRun, *, slots: int, worker_id: str
) -> dict[str, Any]:
    """The options of a stock `arq` worker on the same queue: JSON only, no results, no tries, no timeout of arq's."""
    return {
        "functions": [func(execute_run, name="execute_run")],  # type: ignore[arg-type]
        "redis_settings": RedisSettings.from_dsn(redis_url),
        "queue_name": keys.QUEUE,
        "max_jobs": slots,
        "queue_read_limit": max(200, 2 * slots),
        "job_timeout": A_YEAR,
        "keep_result": 0,
        "max_tries": 1_000_000,
        "health_check_key": f"{keys.worker(worker_id)}:arq",
        "health_check_interval": 30,
        "job_serializer": orjson.dumps,
        "job_deserializer": orjson.loads,
        "log_results": False,
    }
