"""A bench for runs that go wrong: the API on a port, a worker with real agents, a model's endpoint with faults."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from structlog.testing import capture_logs

from api_app.main import build_app
from posthouse.agents.loop import AgentLoop
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.engine.steps import Bounds
from posthouse.errors import ToolFailed
from posthouse.journal.model import Prompt
from posthouse.llm.breaker import Breaker, BreakerPolicy, Endpoint
from posthouse.llm.guarded import Guarded
from posthouse.llm.pace import Pace
from posthouse.llm.providers.openai import openai_provider
from posthouse.llm.rate import Rate
from posthouse.llm.retry import RetryingProvider
from posthouse.llm.routed import one_model
from posthouse.settings import Settings
from posthouse.telemetry import Metrics
from posthouse.testing.endpoint import ModelEndpoint, Reply
from posthouse.testing.fleet import LocalFleet
from posthouse.tools.model import Page, Resources, SearchHit, Tool
from posthouse.workflows.definition import Workflow
from posthouse.workflows.library.research import research

RUNS, SHORT = "/api/v1/runs", "/api/v1/workflows"
OUTPUT_BYTES = 100_000


class Nothing:
    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        raise ToolFailed("nothing here", kind="unexpected")

    async def read(self, address: str) -> Page:
        raise ToolFailed("nothing here", kind="unexpected")


@dataclass
class Seen:
    """What came of a run: its record, its events, and by its place every text that is shown or kept of it."""

    record: dict[str, Any]
    tutorial: dict[str, Any]
    events: list[dict[str, Any]]
    texts: dict[str, str]
    log: str
    slept: list[float]
    asked: int

    def data(self, kind: str) -> list[dict[str, Any]]:
        """What the events of this type say."""
        return [event["data"] for event in self.events if event["type"] == kind]

    def failed_with(self, code: str, message: str, *, retryable: bool) -> None:
        said = {"code": code, "message": message, "retryable": retryable}
        error = said | {"status": 503 if retryable else 422}
        self._shown_as("failed", error)
        assert self.record["output"] is None
        assert (self.tutorial["status"], self.tutorial["output"]) == ("failed", None)
        assert self.tutorial["error"] == {"error": code} | error
        assert self._last_of("progress")["error"] == {"error": code} | error
        assert (self.events[-1]["type"], self.events[-1]["data"]) == ("run.failed", said)

    def stopped_with(self, code: str, message: str) -> None:
        """It is incomplete, with a report; the tutorial's routes know no such thing."""
        self._shown_as(
            "incomplete", {"code": code, "message": message, "retryable": False, "status": 422}
        )
        assert self.record["output"]["report"].strip()
        assert (self.tutorial["status"], self.tutorial["error"]) == ("completed", None)
        assert self.tutorial["output"] == self.record["output"]
        said = {"code": code, "message": message}
        assert (self.events[-1]["type"], self.events[-1]["data"]) == ("run.incomplete", said)

    def _shown_as(self, status: str, error: dict[str, Any]) -> None:
        waited, [listed] = json.loads(self.texts["wait"]), json.loads(self.texts["list"])["runs"]
        for shown in (self.record, waited, listed):
            assert (shown["status"], shown["error"]) == (status, error)

    def _last_of(self, stream: str) -> dict[str, Any]:
        lines = [line for line in self.texts[stream].splitlines() if line.startswith("data: ")]
        last: dict[str, Any] = json.loads(lines[-1].removeprefix("data: "))
        return last


@dataclass
class Bench:
    """Runs of a research agent that has the test's tools, or of other workflows."""

    redis: Redis
    settings: Settings
    serve: Callable[[Any], Any]
    slept: list[float] = field(default_factory=list)

    async def run(
        self,
        *replies: Reply,
        flow: Workflow[Any, Any] = research,
        tools: Iterable[Tool] = (),
        silence_seconds: float = 5.0,
        agent_seconds: float = 60.0,
        breaker: BreakerPolicy | None = None,
        model_wait_seconds: float = 60.0,
    ) -> Seen:
        """Lets a run go to its end, with readers on its streams from the first event on."""
        known, metrics = {tool.name: tool for tool in tools}, Metrics(CollectorRegistry())
        with capture_logs() as log:
            async with ModelEndpoint(*replies) as model, AsyncExitStack() as stack:
                where = Endpoint.at(model.url)
                rate = Rate(Pace(self.redis), where)
                provider = openai_provider(
                    api_key="sk-test",
                    base_url=model.url,
                    idle_seconds=silence_seconds,
                    heard=rate.hear,
                )
                stack.push_async_callback(provider.aclose)
                guarded = Guarded(provider, Breaker(self.redis, breaker), where, metrics, rate=rate)
                loop = AgentLoop(
                    one_model(RetryingProvider(guarded, sleep=self._sleep), "m"),
                    known,
                    Resources(search=Nothing(), pages=Nothing()),
                    metrics,
                    timeout_seconds=agent_seconds,
                )
                fleet = await stack.enter_async_context(
                    self._fleet(flow, loop, known, model_wait_seconds)
                )
                app = build_app(self.settings, {flow.name: flow})
                api = await stack.enter_async_context(self.serve(app))
                texts = await _through(api.client, fleet, flow)
                measured = metrics.render() + fleet.metrics.render()
        texts |= {"worker's metrics": measured.decode(), "redis": await self._kept()}
        return Seen(
            record=json.loads(texts["run"]),
            tutorial=json.loads(texts["tutorial"]),
            events=json.loads(texts["events"])["events"],
            texts=texts,
            log=repr(log),
            slept=self.slept,
            asked=len(model.requests),
        )

    def _fleet(
        self, flow: Workflow[Any, Any], loop: AgentLoop, tools: dict[str, Tool], patience: float
    ) -> LocalFleet:
        spec = AgentSpec("researcher", "", "researcher.v1", tools=tuple(tools))
        return LocalFleet(
            self.settings.redis_url,
            [flow],
            agents={spec.name: Agent(spec, Prompt("researcher", 1, "You look."))},
            runner=loop,
            bounds=Bounds(output_bytes=OUTPUT_BYTES, model_wait_seconds=patience),
        )

    async def _kept(self) -> str:
        return repr([(key, await _value(self.redis, key)) for key in await self.redis.keys()])

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def _through(
    client: httpx.AsyncClient, fleet: LocalFleet, flow: Workflow[Any, Any]
) -> dict[str, str]:
    given = {"topic": "posts", "depth": "deep"} if flow is research else {}
    answer = await client.post(RUNS, json={"workflow": flow.name, "input": given})
    run_id = answer.raise_for_status().json()["run_id"]
    run, short = f"{RUNS}/{run_id}", f"{SHORT}/{run_id}"
    streams = {"stream": f"{run}/stream", "progress": f"{short}/stream"}
    async with AsyncExitStack() as stack:
        reading = [
            await stack.enter_async_context(_reading(client, path)) for path in streams.values()
        ]
        fleet.worker()
        await fleet.ended(run_id)
        texts = dict(zip(streams, [await read for read in reading], strict=True))
    pages = {
        "run": run,
        "steps": f"{run}/steps",
        "events": f"{run}/events?limit=500",
        "wait": f"{run}/wait",
        "list": RUNS,
        "tutorial": short,
        "metrics": "/metrics",
    }
    for name, path in pages.items():
        texts[name] = (await client.get(path)).raise_for_status().text
    return texts


@asynccontextmanager
async def _reading(client: httpx.AsyncClient, path: str) -> AsyncIterator["asyncio.Task[str]"]:
    """The whole stream as a task; its first event has come."""
    begun = asyncio.Event()

    async def read() -> str:
        text = ""
        async with client.stream("GET", path) as response:
            async for piece in response.aiter_text():
                text += piece
                begun.set()
        return text

    async with asyncio.TaskGroup() as group:
        task = group.create_task(read())
        await begun.wait()
        yield task


async def _value(redis: Redis, key: bytes) -> object:
    match await redis.type(key):
        case b"hash":
            return await redis.hgetall(key)
        case b"stream":
            return await redis.xrange(key)
        case b"zset":
            return await redis.zrange(key, 0, -1)
        case b"set":
            return await redis.smembers(key)
        case b"list":
            return await redis.lrange(key, 0, -1)
        case _:
            return await redis.get(key)


@pytest.fixture
def bench(redis: Redis, settings: Settings, serve: Callable[[Any], Any]) -> Bench:
    return Bench(redis, settings, serve)
