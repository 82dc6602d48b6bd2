"""The chore that fires schedules: every worker does it, and each slot makes one run all the same."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from random import Random
from typing import NoReturn

import structlog

from posthouse import clock
from posthouse.engine.insist import insist
from posthouse.errors import Conflict, NotFound, StorageUnavailable
from posthouse.ids import new_run_id
from posthouse.runs.transitions import Transitions
from posthouse.schedules.model import Schedule
from posthouse.schedules.store import Answer, Firing, Page, Schedules
from posthouse.telemetry import Metrics

log = structlog.get_logger()

LOOK_SECONDS = 1.0


class Clockwork:
    """Fires what is due. `versions` are the newest versions of the workflows that this worker reads.

    It looks once every `look_seconds` to twice as long, and when the next slot comes.
    """

    def __init__(
        self,
        schedules: Schedules,
        transitions: Transitions,
        versions: Mapping[str, int],
        metrics: Metrics | None = None,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._schedules = schedules
        self._transitions = transitions
        self._versions = versions
        self._metrics = metrics
        self._look_seconds = look_seconds
        self._jitter = Random()

    async def run(self) -> NoReturn:
        """Looks for ever, on time for each slot that it sees coming; waits while Redis is away."""
        while True:
            pause = self._look_seconds * (1 + self._jitter.random())
            with suppress(StorageUnavailable):
                pause = min(pause, await self.look())
            await clock.sleep(pause)

    async def look(self) -> float:
        """Fires all that is due, and says after how many seconds the next slot comes, at most. StorageUnavailable."""
        start = 0
        while True:
            page = await self._schedules.due(start)
            left = page.passed
            # In an order of its own, so that the workers of a fleet do not fire the same one at once.
            for schedule in self._jitter.sample(page.schedules, len(page.schedules)):
                left += await self._keep(schedule, page.now)
            if not page.more:
                return self._until_next(page)
            start += left

    def _until_next(self, page: Page) -> float:
        if page.upcoming is None:
            return 2 * self._look_seconds
        return (page.upcoming - page.now) / 1000 + 0.05 * self._jitter.random()

    async def _keep(self, schedule: Schedule, now: int) -> bool:
        """Whether it is still due, so that the next page begins behind it."""
        try:
            for firing in self._firings(schedule, now):
                answer, run_id = await self._fire(schedule, firing)
                _say(schedule, firing, answer, run_id)
                if answer is Answer.FIRED and self._metrics is not None:
                    self._metrics.run_accepted()
                if answer not in (Answer.FIRED, Answer.SKIPPED, Answer.PASSED):
                    return answer in (Answer.FULL, Answer.LIVE)
        except Exception:
            # One that cannot be kept must not stop the others.
            log.exception("schedule_broke", schedule_id=schedule.schedule_id)
            return True
        return False

    def _firings(self, schedule: Schedule, now: int) -> Iterator[Firing]:
        given, run_id = schedule.next_slot, new_run_id()
        version = max(self._versions.get(schedule.workflow, 0), schedule.version)
        if given is None:
            yield Firing(0, None, None, run_id, version)
            return
        slots = schedule.rule.due(given, now, schedule.catch_up)
        if schedule.pin is not None:
            slots, run_id = [schedule.pin.slot], schedule.pin.run_id
        if not slots:
            yield Firing(given, None, schedule.rule.next_after(now), run_id, version)
        for slot, later in zip(slots, [*slots[1:], None], strict=True):
            following = later or schedule.rule.next_after(slot)
            yield Firing(given, slot, following, run_id, version)
            if following is None:
                return
            given, run_id = following, new_run_id()

    async def _fire(self, schedule: Schedule, firing: Firing) -> tuple[Answer, str]:
        answer, run_id = await insist(lambda: self._schedules.fire(schedule, firing))
        if answer is not Answer.LIVE:
            return answer, run_id
        # Before the new one begins, so that a worker that dies here leaves a slot that is due, not two runs.
        with suppress(NotFound, Conflict, StorageUnavailable):
            # Another worker may have been quicker.
            if await self._transitions.cancel(run_id, schedule.tenant) and self._metrics:
                self._metrics.run_cancelled()
        return await insist(lambda: self._schedules.fire(schedule, firing))


def _say(schedule: Schedule, firing: Firing, answer: Answer, run_id: str) -> None:
    said = {"schedule_id": schedule.schedule_id, "slot": firing.slot}
    match answer:
        case Answer.FIRED:
            log.info("schedule_fired", run_id=run_id, **said)
        case Answer.SKIPPED:
            log.info("slot_skipped", live_run=run_id, **said)
        case Answer.PASSED:
            log.info("slots_passed", schedule_id=schedule.schedule_id)
        case Answer.FULL:
            log.debug("slot_waits", **said)
        case _:
            pass
