"""Runs that meet an open breaker: they wait without a worker, go on by themselves, and not for ever."""

import asyncio
from collections.abc import Callable

import orjson
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse.agents.loop import AgentLoop
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.engine.steps import Bounds
from posthouse.errors import ModelUnavailable, RunCode, ToolFailed
from posthouse.events.types import Draft, RunWaiting
from posthouse.journal.model import Prompt, Wait
from posthouse.llm.breaker import Breaker, BreakerPolicy, Endpoint
from posthouse.llm.guarded import Guarded
from posthouse.llm.retry import RetryingProvider
from posthouse.llm.routed import one_model
from posthouse.runs.model import RunRecord, Status
from posthouse.storage import keys
from posthouse.telemetry import Metrics
from posthouse.testing.fleet import LocalFleet
from posthouse.testing.provider import Line, ScriptedProvider, say
from posthouse.tools.model import Page, Resources, SearchHit
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

WHERE = Endpoint.at("http://model/v1")
ENDPOINT = keys.endpoint(WHERE.digest)
# Nothing opens but for a minute: a test lets the time pass by setting what is stored back.
PATIENT = BreakerPolicy(span=0, first=60)
AT_ONCE = BreakerPolicy(failures=1, span=0, first=60)
HOUR_MS = 3_600_000
AGENT = Agent(AgentSpec("scout", "Looks.", "scout.v1"), Prompt("scout", 1, "You look."))


class Given(BaseModel):
    pass


class Got(BaseModel):
    text: str
    stopped: str | None = None


async def ask(ctx: RunContext, given: Given) -> Got:
    answer = await ctx.agent("scout", "Look.")
    return Got(text=answer.text, stopped=answer.stopped)


async def quick(ctx: RunContext, given: Given) -> Got:
    return Got(text="quick")


async def both(ctx: RunContext, given: Given) -> Got:
    async def answer() -> str:
        return (await ctx.agent("scout", "Look.")).text

    async def note() -> str:
        return "noted"

    return Got(text=" ".join(await ctx.gather(answer(), ctx.step("note", note))))


class NoResources:
    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        raise ToolFailed("nothing here", kind="unexpected")

    async def read(self, address: str) -> Page:
        raise ToolFailed("nothing here", kind="unexpected")


def down() -> ModelUnavailable:
    return ModelUnavailable("down", code=RunCode.CONNECTION)


class Fleet(LocalFleet):
    """A fleet whose only model is the script, behind the breaker of its endpoint."""

    def __init__(
        self, redis: Redis, url: str, *script: Line, policy: BreakerPolicy, bounds: Bounds | None
    ) -> None:
        self.provider = ScriptedProvider(script)
        metrics, none = Metrics(CollectorRegistry()), NoResources()
        guarded = Guarded(self.provider, Breaker(redis, policy), WHERE, metrics)
        runner = AgentLoop(
            one_model(RetryingProvider(guarded, sleep=at_once), "m"),
            {},
            Resources(search=none, pages=none),
            metrics,
        )
        flows = [Workflow(f.__name__, 1, "", Given, Got, f) for f in (ask, quick, both)]
        super().__init__(url, flows, agents={"scout": AGENT}, runner=runner, bounds=bounds)

    async def parked(self, run_id: str, times: int = 1) -> RunRecord:
        """The record once the run has been parked so often, and is."""
        async with asyncio.timeout(10), self.redis.pubsub() as channel:
            await channel.subscribe(keys.events(run_id))
            while (await self.events(run_id)).count("run.waiting") < times:
                await channel.get_message(timeout=0.2)
        return await self.record(run_id)

    async def time_is_over(self, run_id: str) -> None:
        """As when the breaker's time has passed, and the run's wait for it."""
        await self.redis.hset(ENDPOINT, "open_until", 1)
        for step in await self.redis.hkeys(keys.waits(run_id)):
            await self.redis.hset(keys.waits(run_id), step, "1|model|")
        await self.redis.zadd(keys.DUE, {run_id: 1})

    async def reasons(self, run_id: str) -> list[str]:
        """Why the run was taken on again, each time."""
        entries = await self.redis.xrange(keys.events(run_id))
        resumed = [fields for _, fields in entries if fields[b"type"] == b"run.resumed"]
        return [orjson.loads(fields[b"data"])["reason"] for fields in resumed]


async def at_once(seconds: float) -> None:
    await asyncio.sleep(0)


NewFleet = Callable[..., Fleet]


@pytest.fixture
def fleet_of(redis: Redis, valkey_url: str) -> NewFleet:
    def new(*script: Line, policy: BreakerPolicy, bounds: Bounds | None = None) -> Fleet:
        return Fleet(redis, valkey_url, *script, policy=policy, bounds=bounds)

    return new


@pytest.mark.guarantee("G6")
async def test_a_dead_endpoint_is_asked_by_one_worker_and_waited_for_by_all(
    fleet_of: NewFleet,
) -> None:
    async with fleet_of(down(), down(), down(), policy=PATIENT) as first:
        worker = first.worker()
        failed = await first.ended(await first.submit("ask", "{}"))
        assert failed.error is not None
        assert (failed.status, failed.error.code) == (Status.FAILED, "connection")
        assert len(first.provider.requests) == 3
        await first.drained(worker)

    async with fleet_of(say("well again"), policy=PATIENT) as second:
        second.worker(slots=1)
        run_id = await second.submit("ask", "{}")
        record = await second.parked(run_id)
        assert (record.status, record.wait_reason) == (Status.RUNNING, "model")
        assert (record.owner, record.usage.model_calls) == (None, 0)
        assert (await second.ended(await second.submit("quick", "{}"))).output["text"] == "quick"
        assert second.provider.requests == []

        await second.time_is_over(run_id)
        record = await second.ended(run_id)
        assert (record.status, record.output["text"]) == (Status.COMPLETED, "well again")
        assert len(second.provider.requests) == 1
        assert await second.reasons(run_id) == ["model"]
        assert await second.redis.exists(ENDPOINT) == 0
        assert await second.redis.hget(keys.run(run_id), "down_since") == b""


async def test_a_wait_wakes_by_itself_and_ends_at_its_bound(fleet_of: NewFleet) -> None:
    policy = BreakerPolicy(failures=1, span=0, first=0.05, longest=0.1, look=0.05)
    dead = [down() for _ in range(100)]
    bounds = Bounds(model_wait_seconds=0.4)
    async with fleet_of(*dead, policy=policy, bounds=bounds) as fleet:
        fleet.worker()
        run_id = await fleet.submit("ask", "{}")
        record = await fleet.ended(run_id)
        assert record.error is not None
        assert (record.status, record.error.code, record.error.retryable, record.error.message) == (
            Status.FAILED, "connection", True, "The model's endpoint has been down for too long.",
        )  # fmt: skip
        reasons = await fleet.reasons(run_id)
        assert len(reasons) >= 2
        assert set(reasons) == {"model"}
        # One try at each look, and never one that only finds out what is known.
        assert len(fleet.provider.requests) <= len(reasons) + 1


async def test_a_bound_of_zero_does_not_wait_at_all(fleet_of: NewFleet) -> None:
    bounds = Bounds(model_wait_seconds=0)
    async with fleet_of(down(), policy=AT_ONCE, bounds=bounds) as fleet:
        fleet.worker()
        run_id = await fleet.submit("ask", "{}")
        record = await fleet.ended(run_id)
        assert record.error is not None
        assert (record.status, record.error.code) == (Status.FAILED, "connection")
        assert "run.waiting" not in await fleet.events(run_id)
        assert len(fleet.provider.requests) == 1


async def test_a_step_in_between_begins_the_wait_anew(fleet_of: NewFleet) -> None:
    script = [down(), say(""), down(), down(), say("done")]
    async with fleet_of(*script, policy=AT_ONCE) as fleet:
        fleet.worker()
        run_id = await fleet.submit("ask", "{}")
        await fleet.parked(run_id)
        since = await down_since(fleet, run_id)
        await fleet.redis.hset(keys.run(run_id), "down_since", since - HOUR_MS)
        await fleet.time_is_over(run_id)

        await fleet.parked(run_id, times=2)
        anew = await down_since(fleet, run_id)
        assert anew >= since
        await fleet.time_is_over(run_id)

        await fleet.parked(run_id, times=3)
        assert await down_since(fleet, run_id) == anew
        await fleet.time_is_over(run_id)
        assert (await fleet.ended(run_id)).output["text"] == "done"


async def down_since(fleet: Fleet, run_id: str) -> int:
    return int(await fleet.redis.hget(keys.run(run_id), "down_since"))


async def test_the_time_in_which_a_run_waits_is_not_the_agents(fleet_of: NewFleet) -> None:
    async with fleet_of(say(""), down(), say("in time"), policy=AT_ONCE) as fleet:
        fleet.worker()
        run_id = await fleet.submit("ask", "{}")
        await fleet.parked(run_id)
        # An hour passes: everything that was done is an hour old.
        step, journal = "scout/turn:1", keys.journal(run_id)
        outcome = orjson.loads(await fleet.redis.hget(journal, step))
        outcome["time"] -= HOUR_MS
        await fleet.redis.hset(journal, step, orjson.dumps(outcome))
        await fleet.time_is_over(run_id)
        record = await fleet.ended(run_id)
        assert record.output == {"text": "in time", "stopped": None}


async def test_other_branches_go_on_while_one_waits(fleet_of: NewFleet) -> None:
    async with fleet_of(down(), say("answered"), policy=AT_ONCE) as fleet:
        fleet.worker()
        run_id = await fleet.submit("both", "{}")
        assert (await fleet.parked(run_id)).wait_reason == "model"
        assert await fleet.redis.hexists(keys.journal(run_id), "note")
        await fleet.time_is_over(run_id)
        assert (await fleet.ended(run_id)).output["text"] == "answered noted"


async def test_parking_again_takes_the_endpoints_newest_word(fleet_of: NewFleet) -> None:
    async with fleet_of(policy=PATIENT) as fleet:
        run_id = await fleet.submit("quick", "{}")
        [run] = await fleet.transitions.claim("w", "c", 60_000, 1, [("quick", 1)])
        await fleet.redis.hset(keys.waits(run_id), "turn", "1|model|")
        event = Draft(event=RunWaiting(wait_reason="model"))
        for _ in range(2):
            parked = await fleet.journal.park(
                run,
                run.seq,
                status="running",
                reason="model",
                event=event,
                waits=[Wait("turn", "model", HOUR_MS)],
            )
            assert parked is None
        seconds, _ = await fleet.redis.time()
        due = await fleet.redis.zscore(keys.DUE, run_id)
        assert due == pytest.approx((seconds + 3600) * 1000, abs=5000)
        till, _, _ = (await fleet.redis.hget(keys.waits(run_id), "turn")).partition(b"|")
        assert int(till) == due
