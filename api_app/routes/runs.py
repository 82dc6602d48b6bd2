"""Runs: submit, list, look at, wait for, delete."""

import re
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Response

from api_app.names import RunId
from api_app.schemas import (
    RunRequest,
    accepted_view,
    milliseconds,
    run_view,
    step_view,
    summary_view,
)
from api_app.service import TENANT, Service, Serving, invalid, json_response, promptly
from posthouse.control.submission import Submission
from posthouse.errors import InvalidRequest
from posthouse.events.log import PAGE_LIMIT
from posthouse.ids import is_ulid
from posthouse.runs.model import RunRecord, Status
from posthouse.runs.records import Wanted
from posthouse.runs.transitions import Accepted

router = APIRouter(prefix="/runs", tags=["runs"])

IdempotencyKey = Annotated[
    str | None,
    Header(description="1-255 visible ASCII characters; the same key never starts two runs."),
]
Limit = Annotated[int, Query(ge=1, le=100)]

_VISIBLE = re.compile(r"[!-~]{1,255}")
_POSITION = re.compile(r"\d{15}:\d{6}:[A-Za-z0-9_.:/-]{1,256}")


def checked_key(key: str | None) -> str:
    """The idempotency key, `` for none. Raises InvalidRequest."""
    if key is not None and _VISIBLE.fullmatch(key) is None:
        message = "must be 1-255 visible ASCII characters"
        error = {"location": "header.Idempotency-Key", "message": message}
        raise InvalidRequest(f"Idempotency-Key {message}", errors=(error,))
    return key or ""


async def submit(service: Service, submission: Submission) -> Accepted:
    """Takes the run in, within a second. Raises InvalidRequest, IdempotencyMismatch."""
    async with promptly():
        accepted = await service.submissions.submit(submission)
    if not accepted.replayed:
        service.metrics.run_accepted()
    return accepted


def accepted_response(accepted: Accepted, location: str, body: dict[str, Any]) -> Response:
    """202 and where to look; the same for a replay, but for a header that says so."""
    replayed = {"Idempotency_Replayed": "true"} if accepted.replayed else {}
    return json_response(body, 202, Location=location, **replayed)


@router.post("", status_code=202, summary="Submit a run")
async def post_run(
    service: Serving, wanted: RunRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answers 202 when the run is in Redis."""
    accepted = await submit(
        service,
        Submission(
            route="POST /api/v1/runs",
            tenant=TENANT,
            workflow=wanted.workflow,
            input=wanted.input,
            metadata=wanted.metadata,
            key=checked_key(idempotency_key),
            location=("input",),
            priority=wanted.priority,
            not_before_ms=0 if wanted.not_before is None else milliseconds(wanted.not_before),
            timeout_ms=round((wanted.timeout_seconds or 0) * 1000),
            budget=wanted.budget,
            models=wanted.models,
        ),
    )
    body = accepted_view(accepted.run_id, wanted.workflow, accepted.created_at)
    return accepted_response(accepted, f"/api/v1/runs/{accepted.run_id}", body)


@router.get("", summary="List runs, newest first")
async def get_runs(
    service: Serving,
    status: Status | None = None,
    workflow: str | None = None,
    limit: Limit = 20,
    cursor: str | None = None,
) -> Response:
    """A page of runs without inputs, outputs and steps; `next_cursor` is null at the end."""
    if cursor is not None and not is_ulid(cursor):
        raise invalid("query.cursor", "must be the next_cursor of another page")
    async with promptly():
        listing = await service.records.newest(Wanted(TENANT, status, workflow, limit, cursor))
    runs = [summary_view(record) for record in listing.runs]
    return json_response({"runs": runs, "next_cursor": listing.cursor})


@router.get("/{run_id}", summary="Look at a run")
async def get_run(service: Serving, run_id: RunId) -> Response:
    """The record with input, output, error, usage and steps."""
    return await shown(service, run_id)


@router.get("/{run_id}/wait", summary="Wait for a run's end")
async def wait_for_run(
    service: Serving, run_id: RunId, timeout: Annotated[float, Query(ge=0, le=60)] = 30.0
) -> Response:
    """The record as soon as the run has ended, or as it stands after `timeout` seconds."""
    async with promptly():
        record = await service.records.get(run_id, TENANT)
    if not record.terminal:
        await service.hub.wait_terminal(run_id, timeout, after=record.seq)
    return await shown(service, run_id)


@router.get("/{run_id}/events", summary="Read a run's events")
async def get_events(
    service: Serving,
    run_id: RunId,
    after: Annotated[int, Query(ge=0, le=10**15)] = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = 100,
) -> Response:
    """The envelopes with a seq above `after`; `next_after` is null when there are no more now."""
    async with promptly():
        record = await service.records.get(run_id, TENANT)
        events = await service.log.read(run_id, after, limit)
    more = events[-1].seq if events and events[-1].seq < record.seq else None
    body = b'{"events":[%b],"next_after":%b}' % (
        b",".join(event.envelope for event in events),
        orjson.dumps(more),
    )
    return Response(body, media_type="application/json")


@router.get("/{run_id}/steps", summary="Read a run's steps")
async def get_steps(
    service: Serving, run_id: RunId, limit: Limit = 100, cursor: str = ""
) -> Response:
    """The journalled steps in the order of their commits, with what they returned."""
    if cursor and not _POSITION.fullmatch(cursor):
        raise invalid("query.cursor", "must be the next_cursor of another page")
    async with promptly():
        await service.records.get(run_id, TENANT)
        steps = [step for step in await service.journal.steps(run_id) if step.position > cursor]
        page = steps[:limit]
        results = await service.journal.results(run_id, page)
    shown = [
        step_view(step) | {"result": result} for step, result in zip(page, results, strict=True)
    ]
    more = page[-1].position if len(steps) > limit else None
    return json_response({"steps": shown, "next_cursor": more})


@router.delete("/{run_id}", status_code=204, summary="Delete a run that has ended")
async def delete_run(service: Serving, run_id: RunId) -> Response:
    """Removes the run and everything of it; 409 while it lives."""
    async with promptly():
        record = await service.records.get(run_id, TENANT)
        await service.transitions.delete(record.run_id, TENANT)
    return Response(status_code=204)


async def shown(service: Service, run_id: str, status: int = 200, **headers: str) -> Response:
    """The record with its steps, and the ids of the questions that are open in it and below it."""
    async with promptly():
        record: RunRecord = await service.records.get(run_id, TENANT)
        steps = await service.journal.steps(run_id)
        waits = not record.terminal
        open_inputs = await service.inputs.open_ids(run_id, record.root) if waits else []
        budget = await service.ledger.of(record.root) if record.budget else None
    return json_response(run_view(record, steps, budget, open_inputs), status, **headers)
