"""Workers in this process, for tests of workflows: on a real Redis, to be drained or to die on request."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse import ids
from posthouse.agents.spec import Agent
from posthouse.budget.model import Budget
from posthouse.engine.clockwork import Clockwork
from posthouse.engine.context import AgentRunner
from posthouse.engine.dismissals import Dismissals
from posthouse.engine.engine import Engine, Identity
from posthouse.engine.leases import Leases
from posthouse.engine.pusher import Pusher
from posthouse.engine.slice import Workshop
from posthouse.engine.steps import Bounds, Shared
from posthouse.engine.suspects import Isolation, Suspects
from posthouse.errors import Fatal
from posthouse.events.types import Draft, RunCreated
from posthouse.journal.model import AgentAnswer, Steps
from posthouse.journal.store import JournalStore
from posthouse.queue.worker import NET_SECONDS, FleetWorker, fleet_worker
from posthouse.runs.model import TERMINAL, RunRecord, Status, record_from
from posthouse.runs.transitions import Acceptance, Transitions
from posthouse.schedules.store import Schedules
from posthouse.storage import keys
from posthouse.storage.connect import connect
from posthouse.storage.ending import ended
from posthouse.telemetry import Metrics
from posthouse.workflows.definition import Workflow


class NoAgents:
    """Stands where workflows under test use no agent."""

    async def run(
        self,
        steps: Steps,
        agent: Agent,
        *,
        key: str,
        task: str,
        max_iterations: int | None = None,
        output: type[BaseModel] | None = None,
    ) -> AgentAnswer:
        """Raises Fatal."""
        raise Fatal("this fleet has no agents")


class LocalWorker:
    """One worker of the fleet: an engine and the loop that feeds it."""

    def __init__(self, engine: Engine, worker: FleetWorker, *clients: Redis) -> None:
        self.engine = engine
        self._worker = worker
        self._clients = clients
        self._task = asyncio.create_task(worker.main())
        engine.start()

    async def drain(self) -> None:
        """As on SIGTERM: takes nothing more, gives back what it has."""
        self._worker.stop()
        await self._task
        await self._worker.close()
        await self._let_go()

    async def die(self) -> None:
        """As on SIGKILL: whatever it was doing stops where it is, nothing is given back."""
        await ended([self._task])
        await self.engine.abandon()
        await self._let_go()

    async def _let_go(self) -> None:
        for client in self._clients:
            await client.aclose()


class LocalFleet:
    """Submits runs and runs workers over one Redis, whose contents are the test's own."""

    def __init__(
        self,
        url: str,
        workflows: Iterable[Workflow[Any, Any]],
        *,
        agents: Mapping[str, Agent] | None = None,
        runner: AgentRunner | None = None,
        bounds: Bounds | None = None,
        lease_seconds: float = 1.0,
        isolation: Isolation | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._isolation = isolation
        self.metrics = metrics or Metrics(CollectorRegistry())
        self._url = url
        self._workflows = {(flow.name, flow.version): flow for flow in workflows}
        self._agents = dict(agents or {})
        self._runner = runner or NoAgents()
        self._bounds = bounds or Bounds()
        self._lease_seconds = lease_seconds
        self.redis = connect(url)
        self.transitions = Transitions(self.redis)
        self.journal = JournalStore(self.redis)
        self.workers: list[LocalWorker] = []

    async def __aenter__(self) -> "LocalFleet":
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in list(self.workers):
            await self.dead(worker)
        await self.redis.aclose()

    def worker(self, *, slots: int = 10, drain_seconds: float = 5.0) -> LocalWorker:
        """Starts one more worker."""
        redis = connect(self._url, max_connections=16, socket_timeout=self._lease_seconds / 3)
        transitions = Transitions(redis)
        identity = Identity(f"test-{ids.new_token(4)}", "localhost", 0)
        leases = Leases(transitions, identity.worker_id, self._lease_seconds)
        shared = Shared(JournalStore(redis), leases, Pusher(redis), self._bounds)
        dismissals = Dismissals(redis, identity.worker_id, leases)
        suspects = Suspects(self._isolation, transitions, leases) if self._isolation else None
        workshop = Workshop(
            transitions,
            shared,
            self._workflows,
            self._agents,
            self._runner,
            self.metrics,
            dismissals,
            suspects,
        )
        versions = dict(sorted(self._workflows))
        clockwork = Clockwork(Schedules(redis), transitions, versions, self.metrics)
        engine = Engine(workshop, identity, slots, clockwork)

        async def execute_run(_: dict[Any, Any], run_id: str, dispatch: int) -> None:
            await engine.deliver(run_id, dispatch)

        wake = connect(self._url, max_connections=2, socket_timeout=NET_SECONDS + 5)
        loop = fleet_worker(
            engine, wake, execute_run, slots=slots, drain_seconds=drain_seconds, signals=False
        )
        worker = LocalWorker(engine, loop, redis, wake)
        self.workers.append(worker)
        return worker

    async def dead(self, worker: LocalWorker) -> None:
        """Lets the worker die."""
        self.workers.remove(worker)
        await worker.die()

    async def drained(self, worker: LocalWorker) -> None:
        """Lets the worker drain and end."""
        self.workers.remove(worker)
        await worker.drain()

    async def submit(
        self,
        workflow: str,
        given: str,
        *,
        version: int = 1,
        timeout_ms: int = 0,
        budget: Budget | None = None,
    ) -> str:
        """Accepts a run of the workflow with the input (JSON text); its id."""
        created = Draft(event=RunCreated(workflow=workflow, version=version))
        acceptance = Acceptance(
            *(ids.new_run_id(), "default", workflow, version, given, "{}", created),
            ttl_ms=600_000,
            timeout_ms=timeout_ms,
            budget=tuple(budget.rows()) if budget else (),
        )
        return (await self.transitions.accept(acceptance)).run_id

    async def record(self, run_id: str) -> RunRecord:
        """The run as it stands."""
        stored: dict[bytes, bytes] = await self.redis.hgetall(keys.run(run_id))  # type: ignore[misc]
        return record_from(run_id, {name.decode(): value for name, value in stored.items()})

    async def events(self, run_id: str) -> list[str]:
        """The types of all its events, in order; asserts that their numbers are contiguous from 1."""
        entries = await self.redis.xrange(keys.events(run_id))
        numbers = [int(entry.split(b"-")[0]) for entry, _ in entries]
        assert numbers == list(range(1, len(numbers) + 1))
        return [fields[b"type"].decode() for _, fields in entries]

    async def ended(self, run_id: str, *, seconds: float = 20.0) -> RunRecord:
        """The run's record once it has ended; TimeoutError after so many seconds."""
        return await self.until(run_id, *TERMINAL, seconds=seconds)

    async def until(self, run_id: str, *statuses: Status, seconds: float = 20.0) -> RunRecord:
        """The run's record once it has one of the statuses."""
        async with asyncio.timeout(seconds), self.redis.pubsub() as channel:
            await channel.subscribe(keys.events(run_id))
            while (record := await self.record(run_id)).status not in statuses:
                await channel.get_message(timeout=0.2)
            return record
