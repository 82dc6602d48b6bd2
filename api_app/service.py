"""What the routes work with, and how they get at it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request, Response
from redis.asyncio import Redis

from posthouse.control.journal import Journal
from posthouse.control.submission import Submissions
from posthouse.errors import StorageUnavailable
from posthouse.events.hub import Hub
from posthouse.events.log import EventLog
from posthouse.runs.records import Records
from posthouse.runs.transitions import Transitions
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
    transitions: Transitions
    submissions: Submissions
    workflows: Mapping[str, Workflow[Any, Any]]
    metrics: Metrics
    keep_alive_seconds: float
    write_seconds: float


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(_service)]


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
