"""Word that a run is no longer this worker's: what it does for that run is dropped at once."""

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from posthouse.engine.leases import Leases
from posthouse.errors import StorageUnavailable
from posthouse.storage import keys
from posthouse.storage.connect import available

QUIET_SECONDS = 1.0


class Dismissals:
    """Listens for runs that were cancelled or timed out under this worker; the heartbeat is the net below.

    A connection that is quiet for `quiet_seconds`, and does not answer for as long again, is taken for dead.
    """

    def __init__(
        self, redis: Redis, worker_id: str, leases: Leases, *, quiet_seconds: float = QUIET_SECONDS
    ) -> None:
        self._redis = redis
        self._channel = keys.lost(worker_id)
        self._leases = leases
        self._quiet_seconds = quiet_seconds

    async def listen(self) -> None:
        """Acts on what comes, until the connection ends; to be called again then."""
        try:
            with available():
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(self._channel)
                    await self._follow(channel)
        except StorageUnavailable:
            return

    async def _follow(self, channel: PubSub) -> None:
        asked = False
        while True:
            message = await channel.get_message(timeout=self._quiet_seconds)
            match message:
                case None if asked:
                    return
                case None:
                    await channel.ping()
                case {"type": "subscribe"}:
                    # Nobody was told what was said before; a beat without health asks for it.
                    await self._leases.beat({})
                case {"type": "message", "data": data}:
                    self._dismiss(data)
                case _:
                    pass
            asked = message is None

    def _dismiss(self, data: bytes) -> None:
        run_id, _, fence = data.decode(errors="replace").partition(" ")
        self._leases.lose(run_id, fence)
