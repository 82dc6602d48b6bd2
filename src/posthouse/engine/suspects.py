"""Runs whose last owners died under them: each works in a process of its own, so that it takes nobody along."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

from posthouse import clock
from posthouse.engine.insist import insist
from posthouse.engine.leases import Held, Leases
from posthouse.errors import OwnershipLost, PosthouseError
from posthouse.runs.ownership import Claimed
from posthouse.runs.transitions import Transitions

log = structlog.get_logger()

AT_ONCE = 2


class NotStarted(PosthouseError):
    """A process of its own could not be had; the run has done nothing and is not to blame."""


class Isolation(Protocol):
    """Something that carries one claimed run in a process of its own."""

    async def carry(self, run: Claimed) -> bool:
        """Whether the process lived until the run had ended, was parked or given back; when cancelled, it is killed.

        Raises NotStarted.
        """
        ...

    def begin_drain(self) -> None:
        """Lets no further step begin in the processes; they give their runs back."""
        ...


class Suspects:
    """Carries suspects, at most two at once; this process keeps their leases while they wait and work.

    One that has waited for a lease is given back, so that another worker may have a place for it.
    """

    def __init__(self, isolation: Isolation, transitions: Transitions, leases: Leases) -> None:
        self._isolation = isolation
        self._transitions = transitions
        self._leases = leases
        self._places = asyncio.Semaphore(AT_ONCE)
        self._waiting: set[asyncio.Task[None]] = set()
        self._draining = False

    def begin_drain(self) -> None:
        """Suspects that wait are given back at once, those that work after their current step."""
        self._draining = True
        self._isolation.begin_drain()
        for task in self._waiting:
            task.cancel()

    async def carry(self, held: Held) -> None:
        """Lets the run work alone; a process that dies counts as its crash, and the third one ends it."""
        run = held.run
        with structlog.contextvars.bound_contextvars(run_id=run.run_id, epoch=run.epoch):
            try:
                await self._alone(held)
            except OwnershipLost:
                log.info("slice_dropped")
            except asyncio.CancelledError:
                if not held.lost:
                    await self._give_back(held, "drain")
                raise
            finally:
                self._leases.drop(held)

    async def _alone(self, held: Held) -> None:
        try:
            with self._may_wait():
                async with asyncio.timeout(self._leases.lease_seconds):
                    await self._places.acquire()
        except TimeoutError:
            return await self._give_back(held, "isolation")
        try:
            log.warning("suspect_isolated", crashes=held.run.crashes)
            survived = await self._isolation.carry(held.run)
        except NotStarted as error:
            log.error("suspect_not_started", reason=str(error))
            with self._may_wait():
                await clock.sleep(self._leases.lease_seconds)
            return await self._give_back(held, "isolation")
        finally:
            self._places.release()
        # From here on nobody need be told that the ownership is gone.
        self._leases.drop(held)
        await self._settle(held.run, survived)

    @contextmanager
    def _may_wait(self) -> Iterator[None]:
        """A time in which a drain cancels this task."""
        task = asyncio.current_task()
        assert task is not None
        if self._draining:
            raise asyncio.CancelledError
        self._waiting.add(task)
        try:
            yield
        finally:
            self._waiting.discard(task)

    async def _give_back(self, held: Held, reason: str) -> None:
        await insist(lambda: self._transitions.release(held.run, held.told, reason))
        log.info("run_released")

    async def _settle(self, run: Claimed, survived: bool) -> None:
        # Redis alone knows whether it was done: code of the run can end its process with exit code 0.
        try:
            poisoned = await insist(lambda: self._transitions.crash(run))
        except OwnershipLost:
            if not survived:
                raise
            return
        if poisoned:
            log.error("run_poisoned", crashes=run.crashes + 1, workflow=run.workflow)
        else:
            log.warning("suspect_crashed", crashes=run.crashes + 1)
