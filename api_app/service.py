"""What the routes work with, and how they get at it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request, Response
from redis.asyncio import Redis

from posthouse.budget.ledger import Ledger
from posthouse.control.fleet import Fleet
from posthouse.control.inputs import Replies
from posthouse.control.journal import Journal
from posthouse.control.plan import Plans
from posthouse.control.retrying import Retries
from posthouse.control.schedules import Timetable
from posthouse.control.submission import Submissions
from posthouse.control.usage import Accounts
from posthouse.errors import InvalidRequest, StorageUnavailable
from posthouse.events.hub import Hub
from posthouse.events.log import EventLog
from posthouse.inputs.store import Inputs
from posthouse.runs.records import Records
from posthouse.runs.transitions import Transitions
from posthouse.schedules.store import Schedules
from posthouse.telemetry import Metrics
from posthouse.workflows.definition import Workflow

TENANT = "default"
ANSWER_SECONDS = 0.85


@dataclass(frozen=True)
class Service:
    """Everything that is open while the API serves. Seconds."""

    redis: Redis
    hub: Hub
    log: EventLog
    records: Records
    journal: Journal
    plans: Plans
    accounts: Accounts
    ledger: Ledger
    retries: Retries
    fleet: Fleet
    transitions: Transitions
    submissions: Submissions
    inputs: Inputs
    replies: Replies
    schedules: Schedules
    timetable: Timetable
    workflows: Mapping[str, Workflow[Any, Any]]
    metrics: Metrics
    keep_alive_seconds: float
    write_seconds: float


# Not async would mean a thread for each request.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(_service)]


def invalid(location: str, message: str) -> InvalidRequest:
    """The error for one wrong part of a request."""
    error = {"location": location, "message": message}
    return InvalidRequest(f"{location}: {message}", errors=(error,))


@asynccontextmanager
async def promptly() -> AsyncIterator[None]:
    """What is asked inside is answered within a second, or StorageUnavailable is raised."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            yield
    except TimeoutError:
        raise StorageUnavailable("Redis does not answer in time") from None


def json_response(content: Any, status: int = 200, **headers: str) -> Response:
    """A response of plain JSON; header names with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(orjson.dumps(content), status, headers=named, media_type="application/json")
