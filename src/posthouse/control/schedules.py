"""Keeping a schedule: its rule and its input are checked here, before the first slot comes."""

import hashlib
from dataclasses import dataclass, replace

import orjson
import structlog

from posthouse.clock import monotonic
from posthouse.control.submission import REPEAT_WITHIN_SECONDS, Submission, Submissions
from posthouse.errors import InvalidRequest, StorageUnavailable
from posthouse.ids import new_schedule_id
from posthouse.schedules.model import CatchUp, Overlap, Schedule, rule_of
from posthouse.schedules.store import SCHEDULE_KEY, SLOT_KEY, Kept, Schedules

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Wish:
    """A schedule that somebody wants: what is to run, as for a single run, and when."""

    submission: Submission
    cron: str
    time_zone: str
    overlap: Overlap
    catch_up: CatchUp

    @property
    def fingerprint(self) -> str:
        """The same for the same request; `` without a key."""
        if not self.submission.key:
            return ""
        when = (self.cron, self.time_zone, self.overlap, self.catch_up)
        body = orjson.dumps([self.submission.fingerprint, *when])
        return hashlib.sha256(body).hexdigest()


class Timetable:
    """Keeps schedules for the workflows that `submissions` takes runs of."""

    def __init__(self, schedules: Schedules, submissions: Submissions) -> None:
        self._schedules = schedules
        self._submissions = submissions

    async def keep(self, wish: Wish) -> tuple[Schedule, Kept]:
        """The schedule as it began, and whether the same key made it before.

        Raises InvalidRequest, IdempotencyMismatch, StorageUnavailable.
        """
        wanted = wish.submission
        rule = rule_of(wish.cron, wish.time_zone)
        definition, value = self._submissions.checked(wanted)
        models = self._submissions.models_of(wanted)
        _check_metadata(wanted)
        now = await self._schedules.now()
        schedule = Schedule(
            schedule_id=new_schedule_id(),
            tenant=wanted.tenant,
            rule=rule,
            workflow=definition.name,
            version=definition.version,
            input=value.model_dump_json(),
            metadata=dict(wanted.metadata),
            ttl_ms=self._submissions.ttl_ms,
            priority=wanted.priority,
            timeout_ms=wanted.timeout_ms,
            overlap=wish.overlap,
            catch_up=wish.catch_up,
            created_at=now,
            next_slot=rule.next_after(now),
            budget=wanted.budget if wanted.budget and wanted.budget.rows() else None,
            models=models,
        )
        kept = await self._create(schedule, wanted.key, wish.fingerprint)
        first = rule.next_after(kept.created_at)
        _log.info("schedule_kept", schedule_id=kept.schedule_id, replayed=kept.replayed)
        as_it_began = replace(
            schedule, schedule_id=kept.schedule_id, created_at=kept.created_at, next_slot=first
        )
        return as_it_began, kept

    async def _create(self, schedule: Schedule, key: str, fingerprint: str) -> Kept:
        """Repeated once after a quick failure: with the same id it cannot become two schedules."""
        began = monotonic()
        try:
            return await self._schedules.create(schedule, key, fingerprint)
        except StorageUnavailable:
            if monotonic() - began > REPEAT_WITHIN_SECONDS:
                raise
            return await self._schedules.create(schedule, key, fingerprint)


def _check_metadata(wanted: Submission) -> None:
    for name in (SCHEDULE_KEY, SLOT_KEY):
        if name in wanted.metadata:
            message = "is what every run of a schedule has by itself"
            where = f"metadata.{name}"
            raise InvalidRequest(
                f"{where}: {message}", errors=({"location": where, "message": message},)
            )
