"""The API's composition root: settings in, application out."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis

from api_app.document import add_problem_document
from api_app.guard import BodyGuard, Edge, named_hosts
from api_app.parameters import checked_parameters
from api_app.problems import add_problem_handlers
from api_app.routes import (
    control,
    fleet,
    front,
    health,
    inputs,
    plans,
    runs,
    schedules,
    streams,
    tutorial,
    usage,
    workflows,
)
from api_app.service import Service
from posthouse.budget.ledger import Ledger
from posthouse.control.fleet import Fleet
from posthouse.control.inputs import Replies
from posthouse.control.journal import Journal
from posthouse.control.plan import Plans
from posthouse.control.retrying import Retries
from posthouse.control.schedules import Timetable
from posthouse.control.submission import Submissions
from posthouse.control.usage import Accounts
from posthouse.events.hub import Hub
from posthouse.events.log import EventLog
from posthouse.inputs.store import Inputs
from posthouse.llm.endpoints import endpoints_of
from posthouse.registry import named_libraries, parts_of
from posthouse.runs.records import Records
from posthouse.runs.transitions import Admission, Transitions
from posthouse.schedules.store import Schedules
from posthouse.settings import Settings
from posthouse.storage.connect import connect
from posthouse.storage.fitness import require_fit
from posthouse.telemetry import Metrics
from posthouse.workflows.catalogue import library
from posthouse.workflows.definition import Workflow

REQUEST_TIMEOUT_SECONDS = 0.8
WRITE_SECONDS = 30.0


def create_default_app() -> FastAPI:
    """The application by the environment: `uvicorn --factory api_app.main:create_default_app`.

    It does not start on a Redis that may lose runs.
    """
    return create_app(Settings(), look_at_redis=True)


def create_app(
    settings: Settings, *, write_seconds: float = WRITE_SECONDS, look_at_redis: bool = False
) -> FastAPI:
    """The application with the workflows that are installed. Raises ConfigurationError.

    With `look_at_redis` its start does too, for a Redis that may lose runs.
    """
    packages = parts_of(named_libraries(settings.libraries), "workflows")
    return build_app(
        settings, library(packages), write_seconds=write_seconds, look_at_redis=look_at_redis
    )


def build_app(
    settings: Settings,
    definitions: Mapping[str, Workflow[Any, Any]],
    *,
    write_seconds: float = WRITE_SECONDS,
    look_at_redis: bool = False,
) -> FastAPI:
    """The application with these workflows. Raises ConfigurationError."""
    requests = connect(
        settings.redis_url,
        max_connections=64,
        socket_timeout=REQUEST_TIMEOUT_SECONDS,
        connect_timeout=REQUEST_TIMEOUT_SECONDS,
    )
    pushed = connect(settings.redis_url)
    hub = Hub(pushed, keep_alive_seconds=settings.keep_alive_seconds)
    service = _service(settings, requests, hub, definitions, write_seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if look_at_redis:
            await require_fit(settings.redis_url, unsafe=settings.unsafe_redis)
        async with requests, pushed, hub:
            yield

    app = FastAPI(
        title="posthouse",
        summary="Agent workflows that take seconds to days",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(BodyGuard, limit=settings.max_body_bytes)
    app.add_middleware(Edge, hosts=named_hosts(settings.hosts))
    add_problem_handlers(app)
    _add_routes(app)
    add_problem_document(app)
    return app


def _add_routes(app: FastAPI) -> None:
    for room in (
        streams,
        runs,
        plans,
        usage,
        inputs,
        control,
        fleet,
        schedules,
        tutorial,
        workflows,
    ):
        app.include_router(
            room.router, prefix="/api/v1", dependencies=[Depends(checked_parameters)]
        )
    app.include_router(health.router)
    app.include_router(front.router)


def _endpoints(settings: Settings) -> frozenset[str] | None:
    """The names of the models' endpoints; None when only the workers know them. Raises ConfigurationError."""
    found = endpoints_of(
        _text(settings.endpoints) or "",
        openai_key=_text(settings.openai_api_key),
        openai_url=settings.openai_base_url,
        anthropic_key=_text(settings.anthropic_api_key),
    )
    return frozenset(found) or None


def _text(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _service(
    settings: Settings,
    redis: Redis,
    hub: Hub,
    definitions: Mapping[str, Workflow[Any, Any]],
    write_seconds: float,
) -> Service:
    admission = Admission(
        depth=settings.max_queue,
        age_ms=int(settings.max_queue_seconds * 1000),
        memory_percent=settings.memory_percent,
    )
    transitions = Transitions(redis, admission=admission)
    journal = Journal(redis)
    submissions = Submissions(
        transitions,
        definitions,
        ttl_seconds=settings.workflow_ttl_seconds,
        endpoints=_endpoints(settings),
    )
    asked = Inputs(redis)
    kept = Schedules(redis, admission=admission)
    return Service(
        redis=redis,
        hub=hub,
        log=EventLog(redis),
        records=Records(redis),
        journal=journal,
        plans=Plans(redis, journal),
        accounts=Accounts(redis),
        ledger=Ledger(redis),
        retries=Retries(redis, journal),
        fleet=Fleet(redis),
        transitions=transitions,
        submissions=submissions,
        inputs=asked,
        replies=Replies(asked),
        schedules=kept,
        timetable=Timetable(kept, submissions),
        workflows=definitions,
        metrics=Metrics(CollectorRegistry()),
        keep_alive_seconds=settings.keep_alive_seconds,
        write_seconds=write_seconds,
    )
