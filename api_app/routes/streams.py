"""Event streams: where a reader stands, what it wants, and whether anything is left."""

import re
from enum import StrEnum
from typing import Annotated, get_args

from fastapi import APIRouter, Depends, Header, Query, Response

from api_app.names import RunId
from api_app.progress import ProgressFrames
from api_app.service import TENANT, Service, Serving, invalid, promptly
from api_app.stream import EventStream, NativeFrames
from posthouse.events.types import Event
from posthouse.runs.model import RunRecord

router = APIRouter(prefix="/runs", tags=["runs"])

_SEQ = re.compile(r"[0-9]{1,15}")


class Format(StrEnum):
    """What a stream's messages are: the events themselves, or the progress that they make."""

    NATIVE = "native"
    PROGRESS = "progress"


def _event_types() -> frozenset[str]:
    classes = get_args(get_args(Event)[0])
    return frozenset(kind.model_fields["type"].default for kind in classes)


EVENT_TYPES = _event_types()

LastEventId = Annotated[
    str | None, Header(description="The id of the last message received; goes before `after`.")
]
LastEventIdInQuery = Annotated[
    str | None,
    Query(alias="lastEventId", description="The same, of a client that cannot set the header."),
]
After = Annotated[str | None, Query(description="A seq; only what follows it is sent.")]


async def starting_point(
    after: After = None,
    last_event_id_in_query: LastEventIdInQuery = None,
    last_event_id: LastEventId = None,
) -> int:
    """The seq that the reader has. Raises InvalidRequest."""
    said = {
        "header.Last-Event-ID": last_event_id,
        "query.lastEventId": last_event_id_in_query,
        "query.after": after,
    }
    for place, text in said.items():
        if text is not None:
            if _SEQ.fullmatch(text) is None:
                raise invalid(place, "must be the id of an event: a whole number from 0 on")
            return int(text)
    return 0


Start = Annotated[int, Depends(starting_point)]


@router.get(
    "/{run_id}/stream",
    summary="Follow a run's events (SSE)",
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events, until the run ends."},
        204: {"description": "The run has ended and everything was received."},
    },
)
async def stream_run(
    service: Serving,
    run_id: RunId,
    start: Start,
    types: Annotated[str | None, Query(description="Event types, with commas.")] = None,
    form: Annotated[Format, Query(alias="format")] = Format.NATIVE,
) -> Response:
    """What is in the log, then what happens; a browser's EventSource resumes by itself."""
    wanted = _wanted_types(types)
    if form is Format.PROGRESS:
        return await progress_stream(service, run_id, start)
    record = await _record(service, run_id)
    if _is_over(record, start):
        return Response(status_code=204)
    return EventStream(service, run_id, min(start, record.seq), NativeFrames(wanted))


async def progress_stream(service: Service, run_id: str, start: int) -> Response:
    """The progress of a run from a seq on; it reads the whole log, of which it is a summary."""
    record = await _record(service, run_id)
    if _is_over(record, start):
        return Response(status_code=204)

    async def now() -> RunRecord:
        return await _record(service, run_id)

    return EventStream(service, run_id, 0, ProgressFrames(run_id, min(start, record.seq), now))


def _wanted_types(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    types = frozenset(text.split(","))
    if unknown := sorted(types - EVENT_TYPES):
        known = ", ".join(sorted(EVENT_TYPES))
        raise invalid("query.types", f"unknown event type {unknown[0][:64]!r}; there are: {known}")
    return types


async def _record(service: Service, run_id: str) -> RunRecord:
    async with promptly():
        return await service.records.get(run_id, TENANT)


def _is_over(record: RunRecord, start: int) -> bool:
    return record.terminal and start >= record.seq
