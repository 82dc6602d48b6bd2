"""Composition of a worker process, for `python -m worker_app` and for `arq worker_app.main.WorkerSettings`."""

import asyncio
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from posthouse import __version__, ids
from posthouse.agents.loop import AgentLoop
from posthouse.engine.clockwork import Clockwork
from posthouse.engine.dismissals import Dismissals
from posthouse.engine.engine import Engine, Identity
from posthouse.engine.leases import Leases
from posthouse.engine.libraries import Stock, stock_of
from posthouse.engine.pusher import Pusher
from posthouse.engine.slice import Workshop
from posthouse.engine.steps import Bounds, Shared
from posthouse.engine.suspects import Suspects
from posthouse.errors import ConfigurationError
from posthouse.journal.store import JournalStore
from posthouse.llm.endpoints import secrets_of
from posthouse.llm.prices import prices_of
from posthouse.logs import configure_logs
from posthouse.queue.worker import NET_SECONDS, fleet_worker, stock_settings
from posthouse.registry import named_libraries
from posthouse.runs.transitions import Admission, Transitions
from posthouse.schedules.store import Schedules
from posthouse.settings import Settings
from posthouse.storage.connect import connect
from posthouse.storage.fitness import require_fit
from posthouse.storage.scripts import Scripts
from posthouse.storage.sentinel import is_sentinel
from posthouse.telemetry import Metrics, MetricsServer
from posthouse.tools.attempts import limited
from worker_app.outside import Outside, endpoints_in, outside, routes_in
from worker_app.own_process import OwnProcess


def new_identity() -> Identity:
    """A name of this process that no other has, safe in keys and events."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "host"
    return Identity(f"{host}-{os.getpid()}-{ids.new_token(3)}", host, os.getpid())


@dataclass
class Plant:
    """Everything that one worker process holds, and how it lets go of it."""

    engine: Engine
    stock: Stock
    redis: Redis
    outside: Outside
    metrics: MetricsServer | None

    async def close(self) -> None:
        """Closes every connection and port."""
        await self.outside.close()
        if self.metrics is not None:
            self.metrics.close()
        await self.redis.aclose()


MakeScripts = Callable[[Redis], Scripts]


def build(settings: Settings, identity: Identity, make_scripts: MakeScripts = Scripts) -> Plant:
    """The engine of this process and what it works with. Raises ConfigurationError."""
    stock = stock_of(named_libraries(settings.libraries))
    metrics = Metrics(CollectorRegistry())
    # One silent connection must not cost a lease: three tries fit into one.
    patience = min(5.0, settings.lease_seconds / 3)
    redis = connect(settings.redis_url, max_connections=64, socket_timeout=patience)
    world = outside(settings, redis, metrics)
    loop = AgentLoop(
        world.models,
        limited(stock.tools.values()),
        world.resources,
        metrics,
        max_iterations=settings.max_agent_iterations,
        timeout_seconds=settings.agent_timeout_seconds,
        prices=prices_of(settings.prices),
    )
    scripts = make_scripts(redis)
    transitions = Transitions(redis, scripts)
    bounds = Bounds(
        settings.max_run_steps,
        settings.max_run_events,
        settings.max_output_bytes,
        settings.model_wait_seconds,
    )
    leases = Leases(transitions, identity.worker_id, settings.lease_seconds)
    shared = Shared(JournalStore(redis, scripts), leases, Pusher(redis), bounds)
    known = {(flow.name, flow.version): flow for flow in stock.workflows.values()}
    dismissals = Dismissals(redis, identity.worker_id, leases)
    suspects = Suspects(OwnProcess(), transitions, leases)
    workshop = Workshop(
        transitions, shared, known, stock.agents, loop, metrics, dismissals, suspects
    )
    schedules = Schedules(redis, scripts, _admission(settings))
    versions = {flow.name: flow.version for flow in stock.workflows.values()}
    clockwork = Clockwork(schedules, transitions, versions, metrics)
    engine = Engine(workshop, identity, settings.worker_slots, clockwork)
    served = metrics.serve(settings.metrics_port, settings.host) if settings.metrics_port else None
    return Plant(engine, stock, redis, world, served)


def _admission(settings: Settings) -> Admission:
    return Admission(
        depth=settings.max_queue,
        age_ms=int(settings.max_queue_seconds * 1000),
        memory_percent=settings.memory_percent,
    )


def log_to_stderr(settings: Settings, identity: Identity) -> None:
    keys = [settings.search_api_key]
    secrets = [key.get_secret_value() for key in keys if key]
    secrets += secrets_of(endpoints_in(settings))
    configure_logs(settings.log_level, process=identity.worker_id, secrets=secrets)


async def work(settings: Settings, make_scripts: MakeScripts = Scripts) -> None:
    """Runs a worker until a signal says to stop; every run that it holds is given back.

    Raises ConfigurationError, also for a Redis that may lose runs.
    """
    identity = new_identity()
    log_to_stderr(settings, identity)
    plant = build(settings, identity, make_scripts)
    try:
        await require_fit(settings.redis_url, unsafe=settings.unsafe_redis)
    except ConfigurationError:
        await plant.close()
        raise
    wake = connect(settings.redis_url, max_connections=2, socket_timeout=NET_SECONDS + 5)

    async def execute_run(_: dict[Any, Any], run_id: str, dispatch: int) -> None:
        await plant.engine.deliver(run_id, dispatch)

    worker = fleet_worker(
        plant.engine,
        wake,
        execute_run,
        slots=settings.worker_slots,
        drain_seconds=settings.drain_seconds,
    )
    plant.engine.start()
    _say_what_started(settings, plant.stock)
    try:
        await worker.main()
    finally:
        await worker.close()
        await plant.close()


def _say_what_started(settings: Settings, stock: Stock) -> None:
    log = structlog.get_logger()
    endpoints = endpoints_in(settings)
    routes = routes_in(settings, endpoints)
    log.info(
        "worker_started",
        version=__version__,
        redis=settings.redis_url,
        model=", ".join(map(str, routes.smart)),
        fast_model=", ".join(map(str, routes.fast)),
        endpoint=", ".join(
            f"{one.name} ({one.base_url or one.kind})" for one in endpoints.values()
        ),
        slots=settings.worker_slots,
        workflows=sorted(stock.workflows),
        agents=sorted(stock.agents),
        tools=sorted(stock.tools),
        search=settings.search,
        corpus=str(settings.corpus),
    )
    if settings.search == "corpus" and not settings.corpus.is_dir():
        log.warning("corpus_missing", corpus=str(settings.corpus))


def stock_worker_settings(settings: Settings) -> type:
    """The class that the stock `arq` command reads; correct, but it polls and does not reconnect.

    Raises ConfigurationError.
    """
    if is_sentinel(settings.redis_url):
        raise ConfigurationError(
            "REDIS_URL: the stock arq command cannot ask sentinels; start `python -m worker_app`"
        )
    identity = new_identity()

    async def execute_run(context: dict[Any, Any], run_id: str, dispatch: int) -> None:
        """The one arq function: only ids travel, the record is the truth."""
        await context["plant"].engine.deliver(run_id, dispatch)

    async def on_startup(context: dict[Any, Any]) -> None:
        log_to_stderr(settings, identity)
        context["plant"] = build(settings, identity)
        await require_fit(settings.redis_url, unsafe=settings.unsafe_redis)
        context["plant"].engine.start()

    async def on_shutdown(context: dict[Any, Any]) -> None:
        await context["plant"].engine.drain(0)
        await context["plant"].close()

    options = stock_settings(
        settings.redis_url, execute_run, slots=settings.worker_slots, worker_id=identity.worker_id
    )
    return type(
        "WorkerSettings", (), {**options, "on_startup": on_startup, "on_shutdown": on_shutdown}
    )


def __getattr__(name: str) -> Any:
    # arq asks for this attribute; nothing is built before it does.
    if name == "WorkerSettings":
        return stock_worker_settings(Settings())
    raise AttributeError(name)


def run(settings: Settings) -> None:
    """Runs `work` on uvloop where there is one."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(work(settings))


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
