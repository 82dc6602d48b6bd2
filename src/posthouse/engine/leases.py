"""What this worker owns: one heartbeat for all leases, and a way to know when an ownership can be relied on."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from posthouse import clock
from posthouse.errors import OwnershipLost, StorageUnavailable
from posthouse.runs.ownership import Claimed, Lease
from posthouse.runs.transitions import Transitions

log = structlog.get_logger()


@dataclass
class Held:
    """One ownership: its claim, the highest seq told, and when it was last known to be ours (monotonic seconds)."""

    run: Claimed
    confirmed_at: float
    told: int
    on_loss: Callable[[], None]
    lost: bool = False
    beaten: asyncio.Event = field(default_factory=asyncio.Event)
    copied: int = 0

    def tell(self, seq: int, copied: int = 0) -> None:
        """Remembers the highest seq that Redis has told for this run, and how many are its children's events."""
        self.told = max(self.told, seq)
        self.copied = max(self.copied, copied)


class Leases:
    """The leases of one worker, kept by fence: the same run may be claimed again while its old slice unwinds."""

    def __init__(self, transitions: Transitions, worker_id: str, lease_seconds: float) -> None:
        self._transitions = transitions
        self._worker_id = worker_id
        self.lease_seconds = lease_seconds
        self._held: dict[str, Held] = {}
        self.last_trouble = clock.monotonic()
        self._away = False

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, run: Claimed, sent_at: float, on_loss: Callable[[], None]) -> Held:
        """Begins to keep a claim whose request was sent at `sent_at`; `on_loss` is called once when it is lost."""
        held = Held(run, sent_at, run.seq, on_loss, copied=run.copied)
        self._held[run.fence + run.run_id] = held
        return held

    def drop(self, held: Held) -> None:
        """Stops to keep it."""
        self._held.pop(held.run.fence + held.run.run_id, None)

    async def confirmed(self, held: Held) -> None:
        """Returns once the ownership was confirmed less than a lease ago. Raises OwnershipLost."""
        while not held.lost and clock.monotonic() - held.confirmed_at >= self.lease_seconds:
            held.beaten.clear()
            await held.beaten.wait()
        if held.lost:
            raise OwnershipLost(held.run.run_id)

    async def beat(self, health: dict[str, str | int]) -> None:
        """Renews everything that is held, in one call; whatever is refused is lost. Raises StorageUnavailable."""
        held = list(self._held.values())
        sent_at = clock.monotonic()
        leases = [Lease(one.run.run_id, one.run.fence, one.told) for one in held]
        lost = set(
            await self._transitions.heartbeat(
                self._worker_id, int(self.lease_seconds * 1000), health, leases
            )
        )
        for one, lease in zip(held, leases, strict=True):
            if lease in lost:
                self._lose(one)
            else:
                one.confirmed_at = max(one.confirmed_at, sent_at)
                one.beaten.set()

    def lose_all(self) -> None:
        """Treats every lease as lost."""
        for held in list(self._held.values()):
            self._lose(held)

    def lose(self, run_id: str, fence: str) -> None:
        """Treats this one lease as lost, if it is held."""
        if held := self._held.get(fence + run_id):
            self._lose(held)

    def _lose(self, held: Held) -> None:
        if not held.lost and held.run.fence + held.run.run_id in self._held:
            held.lost = True
            held.beaten.set()
            log.warning("lease_lost", run_id=held.run.run_id, epoch=held.run.epoch)
            held.on_loss()

    async def keep(self, health: Callable[[], dict[str, str | int]]) -> None:
        """Beats three times a lease, for ever; sooner again after trouble."""
        while True:
            pause = self.lease_seconds / 3
            try:
                await self.beat(health())
                self._back()
            except StorageUnavailable as error:
                self.trouble(error)
                pause = min(pause, 0.25)
            await clock.sleep(pause)

    def trouble(self, error: StorageUnavailable) -> None:
        """Remembers that Redis was away just now; says so once an outage."""
        if not self._away:
            log.warning("redis_away", reason=str(error))
        self._away = True
        self.last_trouble = clock.monotonic()

    def _back(self) -> None:
        if self._away:
            log.info("redis_back")
        self._away = False

    def calm(self) -> bool:
        """Whether neither start nor trouble was within the last lease, so that others' leases may be ended."""
        return clock.monotonic() - self.last_trouble > self.lease_seconds
