"""Schedules: keep, list, look at, delete."""

from fastapi import APIRouter, Response

from api_app.names import ScheduleId
from api_app.routes.runs import IdempotencyKey, Limit, checked_key
from api_app.schedules import ScheduleRequest, schedule_summary, schedule_view
from api_app.service import TENANT, Serving, invalid, json_response, promptly
from posthouse.control.schedules import Wish
from posthouse.control.submission import Submission
from posthouse.ids import is_ulid

router = APIRouter(prefix="/schedules", tags=["schedules"])


@router.post("", status_code=201, summary="Keep a schedule")
async def post_schedule(
    service: Serving, wanted: ScheduleRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """From now on each slot makes one run; 201 when the schedule is in Redis."""
    submission = Submission(
        route="POST /api/v1/schedules",
        tenant=TENANT,
        workflow=wanted.workflow,
        input=wanted.input,
        metadata=wanted.metadata,
        key=checked_key(idempotency_key),
        location=("input",),
        priority=wanted.priority,
        timeout_ms=round((wanted.timeout_seconds or 0) * 1000),
        budget=wanted.budget,
        models=wanted.models,
    )
    wish = Wish(submission, wanted.cron, wanted.time_zone, wanted.overlap, wanted.catch_up)
    async with promptly():
        schedule, kept = await service.timetable.keep(wish)
    location = f"/api/v1/schedules/{schedule.schedule_id}"
    replayed = {"Idempotency_Replayed": "true"} if kept.replayed else {}
    return json_response(schedule_view(schedule), 201, Location=location, **replayed)


@router.get("", summary="List schedules, newest first")
async def get_schedules(service: Serving, limit: Limit = 20, cursor: str | None = None) -> Response:
    """A page of schedules without inputs; `next_cursor` is null at the end."""
    if cursor is not None and not is_ulid(cursor):
        raise invalid("query.cursor", "must be the next_cursor of another page")
    async with promptly():
        listed = await service.schedules.newest(TENANT, limit, cursor)
    shown = [schedule_summary(schedule) for schedule in listed.schedules]
    return json_response({"schedules": shown, "next_cursor": listed.cursor})


@router.get("/{schedule_id}", summary="Look at a schedule")
async def get_schedule(service: Serving, schedule_id: ScheduleId) -> Response:
    """The schedule with its input, its next slot, and what came of the last one."""
    async with promptly():
        schedule = await service.schedules.get(schedule_id, TENANT)
    return json_response(schedule_view(schedule))


@router.delete("/{schedule_id}", status_code=204, summary="Delete a schedule")
async def delete_schedule(service: Serving, schedule_id: ScheduleId) -> Response:
    """No slot fires any more; the runs that it made stay."""
    async with promptly():
        await service.schedules.delete(schedule_id, TENANT)
    return Response(status_code=204)
