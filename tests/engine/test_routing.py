"""Runs whose models are limited in their rate: they wait without a worker, or go to another model, and none fails."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse.agents.loop import AgentLoop
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.engine.steps import Bounds
from posthouse.errors import ModelUnavailable, RunCode, ToolFailed
from posthouse.journal.model import Prompt
from posthouse.llm.breaker import Breaker, Endpoint
from posthouse.llm.guarded import Guarded
from posthouse.llm.messages import Completion, ModelRequest
from posthouse.llm.pace import Lane, Limits, Pace, PacePolicy
from posthouse.llm.rate import Rate
from posthouse.llm.retry import RetryingProvider, RetryPolicy
from posthouse.llm.routed import Routed
from posthouse.llm.router import Reference, Routes
from posthouse.runs.model import RunRecord, Status
from posthouse.storage import keys
from posthouse.telemetry import Metrics
from posthouse.testing.fleet import LocalFleet
from posthouse.testing.provider import say
from posthouse.tools.model import Page, Resources, SearchHit
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

# A minute is half a second here, and no wait is short enough to be waited for in place.
QUICK = PacePolicy(first=0.1, longest=0.3, trial=0.02, look=0.1)
NEVER_IN_PLACE = RetryPolicy(patience=0.0)
WHERE = {name: Endpoint.at(f"http://{name}/v1") for name in ("main", "spare")}
MAIN, SPARE = Reference("main", "big"), Reference("spare", "small")
SCOUT = Agent(AgentSpec("scout", "Looks.", "scout.v1"), Prompt("scout", 1, "You look."))
CLERK = Agent(
    AgentSpec("clerk", "Writes.", "clerk.v1", tier="fast"), Prompt("clerk", 1, "You write.")
)


class Given(BaseModel):
    agent: str = "scout"


class Got(BaseModel):
    text: str


async def ask(ctx: RunContext, given: Given) -> Got:
    return Got(text=(await ctx.agent(given.agent, "Look.")).text)


async def quick(ctx: RunContext, given: Given) -> Got:
    return Got(text="quick")


class NoResources:
    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        raise ToolFailed("nothing here", kind="unexpected")

    async def read(self, address: str) -> Page:
        raise ToolFailed("nothing here", kind="unexpected")


class Model:
    """Answers with its name, or with 429 while it is busy."""

    def __init__(self, name: str, busy: bool, retry_after: float | None) -> None:
        self.name = name
        self.busy = busy
        self.retry_after = retry_after
        self.requests = 0
        self.answered = 0

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        self.requests += 1
        if self.busy:
            code = RunCode.RATE_LIMIT
            raise ModelUnavailable("busy", code=code, retry_after=self.retry_after)
        self.answered += 1
        return say(f"{self.name} {request.model}")


class Fleet(LocalFleet):
    """A fleet with two endpoints, `main` and `spare`, behind their breakers and rates."""

    def __init__(
        self,
        redis: Redis,
        url: str,
        *,
        routes: Routes = Routes((MAIN,), (SPARE,)),  # noqa: B008
        busy: bool = False,
        retry_after: float | None = None,
        limits: Limits | None = None,
        policy: PacePolicy = QUICK,
        bounds: Bounds | None = None,
    ) -> None:
        self.main = Model("main", busy, retry_after)
        self.spare = Model("spare", False, None)
        metrics, none = Metrics(CollectorRegistry()), NoResources()
        providers = {
            model.name: RetryingProvider(
                Guarded(
                    model,
                    Breaker(redis),
                    WHERE[model.name],
                    metrics,
                    rate=Rate(Pace(redis, policy), WHERE[model.name], limits),
                ),
                NEVER_IN_PLACE,
            )
            for model in (self.main, self.spare)
        }
        runner = AgentLoop(
            Routed(providers, routes, NEVER_IN_PLACE),
            {},
            Resources(search=none, pages=none),
            metrics,
        )
        flows = [Workflow(f.__name__, 1, "", Given, Got, f) for f in (ask, quick)]
        agents = {agent.spec.name: agent for agent in (SCOUT, CLERK)}
        super().__init__(url, flows, agents=agents, runner=runner, bounds=bounds)

    async def parked(self, run_id: str) -> RunRecord:
        """The record while the run waits for the rate."""
        async with asyncio.timeout(10), self.redis.pubsub() as channel:
            await channel.subscribe(keys.events(run_id))
            while (record := await self.record(run_id)).wait_reason != "rate_limit":
                await channel.get_message(timeout=0.05)
            return record

    async def said(self, run_id: str, kind: str) -> list[Mapping[str, Any]]:
        """The data of the run's events of this type."""
        entries = await self.redis.xrange(keys.events(run_id))
        return [orjson.loads(f[b"data"]) for _, f in entries if f[b"type"] == kind.encode()]


NewFleet = Callable[..., Fleet]


@pytest.fixture
def fleet_of(redis: Redis, valkey_url: str) -> NewFleet:
    def new(**options: Any) -> Fleet:
        return Fleet(redis, valkey_url, **options)

    return new


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize("retry_after", [None, 0.1])
async def test_an_endpoint_that_is_limited_for_a_minute_fails_no_run_and_holds_no_slot(
    fleet_of: NewFleet, retry_after: float | None
) -> None:
    async with fleet_of(busy=True, retry_after=retry_after) as fleet:
        for _ in range(2):
            fleet.worker(slots=1)
        runs = [await fleet.submit("ask", "{}") for _ in range(12)]
        for run_id in runs:
            record = await fleet.parked(run_id)
            assert (record.status, record.owner) == (Status.RUNNING, None)
        # Two slots, twelve runs that wait: whatever else there is gets through.
        assert (await fleet.ended(await fleet.submit("quick", "{}"))).output["text"] == "quick"
        assert fleet.main.answered == 0

        fleet.main.busy = False
        records = [await fleet.ended(run_id) for run_id in runs]
        assert {record.status for record in records} == {Status.COMPLETED}
        assert {record.usage.model_calls for record in records} == {1}
        assert fleet.main.answered == 12
        reasons = {said["wait_reason"] for said in await fleet.said(runs[0], "run.waiting")}
        assert reasons == {"rate_limit"}
        assert {said["reason"] for said in await fleet.said(runs[0], "run.resumed")} == {"model"}


async def test_with_a_second_model_in_the_route_traffic_goes_there_at_once(
    fleet_of: NewFleet,
) -> None:
    routes = Routes((MAIN, SPARE), (SPARE,))
    async with fleet_of(routes=routes, busy=True, retry_after=60.0) as fleet:
        for _ in range(2):
            fleet.worker(slots=2)
        runs = [await fleet.submit("ask", "{}") for _ in range(8)]
        records = [await fleet.ended(run_id) for run_id in runs]
        assert {record.output["text"] for record in records} == {"spare small"}
        assert fleet.main.requests <= 4  # those that were under way before it was known
        for run_id in runs:
            types = await fleet.events(run_id)
            assert "run.waiting" not in types
            assert "model.retrying" not in types
        assert (await fleet.said(runs[-1], "model.routed")) == [
            {"provider": "spare", "model": "small", "tier": "smart", "reason": "rate_limited"}
        ]


async def test_a_limit_of_the_operator_holds_over_several_workers(fleet_of: NewFleet) -> None:
    limits = Limits(requests_per_minute=4)
    async with fleet_of(limits=limits) as first, fleet_of(limits=limits) as second:
        first.worker(slots=2)
        second.worker(slots=2)
        runs = [await first.submit("ask", "{}") for _ in range(7)]
        async with asyncio.timeout(10):
            while await completed(first, runs) < 4:
                await first.redis.blpop(["never"], timeout=0.02)
            while await waiting(first, runs) < 3:
                await first.redis.blpop(["never"], timeout=0.02)
        assert first.main.requests + second.main.requests == 4
        # The minute is over.
        await first.redis.delete(keys.pace(Lane(WHERE["main"].digest, "big").whole))
        records = [await first.ended(run_id) for run_id in runs]
        assert {record.status for record in records} == {Status.COMPLETED}
        assert first.main.requests + second.main.requests == 7


async def completed(fleet: Fleet, runs: list[str]) -> int:
    records = [await fleet.record(run_id) for run_id in runs]
    return sum(record.status is Status.COMPLETED for record in records)


async def waiting(fleet: Fleet, runs: list[str]) -> int:
    records = [await fleet.record(run_id) for run_id in runs]
    return sum(record.wait_reason == "rate_limit" for record in records)


async def test_a_limit_that_lasts_longer_than_the_bound_ends_the_run(fleet_of: NewFleet) -> None:
    async with fleet_of(busy=True, bounds=Bounds(model_wait_seconds=0.3)) as fleet:
        fleet.worker()
        record = await fleet.ended(await fleet.submit("ask", "{}"))
        assert record.error is not None
        assert (record.status, record.error.code) == (Status.FAILED, "rate_limit")
        assert record.error.message == (
            "The model provider has limited the rate of requests for too long."
        )


async def test_an_agent_asks_for_its_tier_and_says_so_in_the_turns_own_commit(
    fleet_of: NewFleet,
) -> None:
    async with fleet_of() as fleet:
        fleet.worker()
        run_id = await fleet.submit("ask", '{"agent": "clerk"}')
        assert (await fleet.ended(run_id)).output["text"] == "spare small"
        types = await fleet.events(run_id)
        assert types[types.index("model.routed") :] == [
            "model.routed", "message.completed", "turn.completed", "run.completed",
        ]  # fmt: skip
        assert await fleet.said(run_id, "model.routed") == [
            {"provider": "spare", "model": "small", "tier": "fast", "reason": "tier"}
        ]


async def test_a_run_may_name_its_own_models(fleet_of: NewFleet) -> None:
    async with fleet_of() as fleet:
        run_id = await fleet.submit("ask", "{}")
        await fleet.redis.hset(keys.run(run_id), "models", '{"smart": ["spare:own"]}')
        fleet.worker()
        assert (await fleet.ended(run_id)).output["text"] == "spare own"
        [routed] = await fleet.said(run_id, "model.routed")
        assert (routed["model"], routed["reason"]) == ("own", "run_override")
        assert (await fleet.said(run_id, "turn.started"))[0]["model"] == "own"


async def test_a_model_at_no_endpoint_fails_the_run_with_words(fleet_of: NewFleet) -> None:
    async with fleet_of() as fleet:
        run_id = await fleet.submit("ask", "{}")
        await fleet.redis.hset(keys.run(run_id), "models", '{"smart": ["nowhere:m"]}')
        fleet.worker()
        record = await fleet.ended(run_id)
        assert record.error is not None
        assert (record.error.code, "'nowhere', which is no endpoint" in record.error.message) == (
            "fatal",
            True,
        )
