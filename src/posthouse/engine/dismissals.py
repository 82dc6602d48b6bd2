"""Word that a run is no longer this worker's: what it does for that run is dropped at once."""

from redis.asyncio import Redis

from posthouse.engine.leases import Leases
from posthouse.errors import StorageUnavailable
from posthouse.storage import keys
from posthouse.storage.connect import available

LISTEN_SECONDS = 5.0


class Dismissals:
    """Listens for runs that were cancelled or timed out under this worker; the heartbeat is the net below."""

    def __init__(self, redis: Redis, worker_id: str, leases: Leases) -> None:
        self._redis = redis
        self._channel = keys.lost(worker_id)
        self._leases = leases

    async def listen(self) -> None:
        """Acts on what comes, until the connection ends; to be called again then."""
        try:
            with available():
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(self._channel)
                    while True:
                        message = await channel.get_message(
                            ignore_subscribe_messages=True, timeout=LISTEN_SECONDS
                        )
                        if message is not None:
                            self._dismiss(message["data"])
        except StorageUnavailable:
            return

    def _dismiss(self, data: bytes) -> None:
        run_id, _, fence = data.decode(errors="replace").partition(" ")
        self._leases.lose(run_id, fence)
