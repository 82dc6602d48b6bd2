"""The engine of one worker process: it claims runs, keeps their leases, sweeps, and gives all back when it drains."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random

import structlog

from posthouse import __version__, clock, ids
from posthouse.engine.clockwork import Clockwork
from posthouse.engine.insist import insist
from posthouse.engine.slice import AnyWorkflow, Slice, Workshop, owner_of
from posthouse.errors import OwnershipLost, StorageUnavailable
from posthouse.runs.ownership import Claimed, Swept
from posthouse.runs.transitions import Transitions
from posthouse.storage.ending import ended

log = structlog.get_logger()

GIVE_BACK_SECONDS = 5.0


async def _for_ever(name: str, chore: Callable[[], Awaitable[None]]) -> None:
    # A fault in a chore must be seen, and must not leave a worker that looks alive and is not.
    while True:
        try:
            await chore()
        except Exception:
            log.exception("chore_broke", chore=name)
        await clock.sleep(0.5)


@dataclass(frozen=True)
class Identity:
    """Who this worker is in records, events and its health key."""

    worker_id: str
    host: str
    pid: int


class Engine:
    """Everything that a worker does with runs, but for deciding when to take the next."""

    def __init__(
        self,
        workshop: Workshop,
        identity: Identity,
        slots: int,
        clockwork: Clockwork | None = None,
    ) -> None:
        self._workshop = workshop
        self._clockwork = clockwork
        self._identity = identity
        self._slots = slots
        self._slices: set[asyncio.Task[None]] = set()
        self._chores: list[asyncio.Task[None]] = []
        self._started_at = clock.wall_ms()
        self._jitter = Random()
        self._unanswered: tuple[str, float] | None = None

    @property
    def _transitions(self) -> Transitions:
        return self._workshop.transitions

    @property
    def _readable(self) -> Mapping[tuple[str, int], AnyWorkflow]:
        return self._workshop.workflows

    def start(self) -> None:
        """Begins to beat, to sweep, to push and to fire schedules."""
        leases = self._workshop.shared.leases
        chores = {
            "beat": lambda: leases.keep(self._health),
            "sweep": self._sweep,
            "push": self._workshop.shared.pusher.run,
            "dismissals": self._workshop.dismissals.listen,
        }
        if self._clockwork is not None:
            chores["schedules"] = self._clockwork.run
        self._chores = [
            asyncio.create_task(_for_ever(name, chore), name=name) for name, chore in chores.items()
        ]

    def _health(self) -> dict[str, str | int]:
        readable = " ".join(f"{name}:{version}" for name, version in self._readable)
        return {
            "host": self._identity.host,
            "pid": self._identity.pid,
            "version": __version__,
            "started_at": self._started_at,
            "slots": self._slots,
            "running": len(self._slices),
            "workflows": readable,
            "draining": int(self._workshop.shared.drain.raised),
        }

    async def pick(self, limit: int) -> list[asyncio.Task[None]]:
        """Claims up to `limit` queued runs and starts their slices. Raises StorageUnavailable."""
        return await self._claim(limit, "")

    async def deliver(self, run_id: str, dispatch: int) -> None:
        """What a stock arq worker calls: claims this one dispatch and carries it; a stale one is nothing to do."""
        self._unanswered = None
        for started in await self._claim(1, f"{run_id}:{dispatch}"):
            try:
                await asyncio.shield(started)
            except asyncio.CancelledError:
                started.cancel()
                await asyncio.wait([started])
                raise

    async def _claim(self, limit: int, job: str) -> list[asyncio.Task[None]]:
        claim_id, sent_at = self._unanswered_claim() or (ids.new_token(), clock.monotonic())
        self._unanswered = claim_id, sent_at
        try:
            claimed = await self._transitions.claim(
                self._identity.worker_id,
                claim_id,
                int(self._workshop.shared.leases.lease_seconds * 1000),
                limit,
                self._readable,
                job=job,
            )
        except StorageUnavailable as error:
            self._workshop.shared.leases.trouble(error)
            raise
        self._unanswered = None
        return [self._begin(run, sent_at) for run in claimed]

    def _unanswered_claim(self) -> tuple[str, float] | None:
        # A claim whose reply was lost is made again under its own id, and then gives the same runs.
        lease = self._workshop.shared.leases.lease_seconds
        if self._unanswered and clock.monotonic() - self._unanswered[1] < lease:
            return self._unanswered
        return None

    def _begin(self, run: Claimed, sent_at: float) -> asyncio.Task[None]:
        def on_loss() -> None:
            task.cancel()

        held = self._workshop.shared.leases.hold(run, sent_at, on_loss)
        suspects = self._workshop.suspects
        work = (
            suspects.carry(held)
            if suspects is not None and run.suspect
            else Slice(self._workshop, held).carry()
        )
        task: asyncio.Task[None] = asyncio.create_task(work, name=owner_of(run))
        self._slices.add(task)
        task.add_done_callback(self._ended)
        metrics = self._workshop.metrics
        metrics.run_waited((run.claimed_at - run.queued_at) / 1000)
        if run.reason == "crash":
            metrics.run_recovered()
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._slices.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("slice_broke", slice=task.get_name(), exc_info=error)

    async def carry_alone(self, run: Claimed) -> None:
        """Carries one run that another process claimed, at most until it has committed a step.

        That process may be killed for it.
        """
        leases = self._workshop.shared.leases
        self._workshop.shared.drain.with_a_commit = True
        chores = {
            # Without health: it is no worker of the fleet.
            "beat": lambda: leases.keep(dict),
            "push": self._workshop.shared.pusher.run,
        }
        self._chores = [
            asyncio.create_task(_for_ever(name, chore)) for name, chore in chores.items()
        ]
        # Owned only once the first beat has said so.
        long_ago = clock.monotonic() - 2 * leases.lease_seconds
        carrying = asyncio.ensure_future(self._carried(run, long_ago))
        try:
            await asyncio.wait([carrying])
        finally:
            await self._end_chores()
        if not carrying.cancelled():
            carrying.result()

    async def _carried(self, run: Claimed, sent_at: float) -> None:
        task = asyncio.current_task()
        assert task is not None

        def on_loss() -> None:
            task.cancel()

        held = self._workshop.shared.leases.hold(run, sent_at, on_loss)
        try:
            await insist(lambda: self._transitions.isolate(run))
        except OwnershipLost:
            log.info("slice_dropped", run_id=run.run_id, epoch=run.epoch)
            return
        await Slice(self._workshop, held).carry()

    async def _sweep(self) -> None:
        leases = self._workshop.shared.leases
        lease_ms = int(leases.lease_seconds * 1000)
        while True:
            more = False
            try:
                swept = await self._transitions.sweep(
                    lease_ms, may_end_leases=leases.calm(), readable=self._readable
                )
                more = swept.more
                self._count(swept)
            except StorageUnavailable as error:
                leases.trouble(error)
            if not more:
                # Jitter, so that the workers of a fleet do not sweep all at once.
                await clock.sleep(leases.lease_seconds / 12 * (1 + self._jitter.random()))

    def _count(self, swept: Swept) -> None:
        failed = swept.timed_out + swept.poisoned
        if swept.lapsed or swept.requeued or swept.broken or failed:
            log.warning("swept", **vars(swept))
        self._workshop.metrics.runs_ended_by_scripts(failed=failed, cancelled=swept.cancelled)

    def begin_drain(self) -> None:
        """From now on no step begins here; slices give their runs back at the next one."""
        self._workshop.shared.drain.raised = True
        if self._workshop.suspects is not None:
            self._workshop.suspects.begin_drain()

    async def drain(self, limit: float) -> None:
        """Lets current steps end for up to `limit` seconds, then cancels them; every run is given back."""
        self.begin_drain()
        if self._slices:
            _, late = await asyncio.wait(self._slices, timeout=limit)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=GIVE_BACK_SECONDS)
        await self._end_chores()

    async def abandon(self) -> None:
        """Stops everything where it is and gives nothing back, as a crash does."""
        await self._end_chores()
        self._workshop.shared.leases.lose_all()
        await ended(self._slices)

    async def _end_chores(self) -> None:
        await ended(self._chores)
