"""Child runs through a real worker loop: made once, joined without a worker, ended and tried again with their root."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse import clock
from posthouse.errors import StepFailed
from posthouse.journal.model import ChildEnd
from posthouse.runs.model import Status
from posthouse.runs.records import Records, Wanted
from posthouse.storage import keys
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Incomplete, Workflow


class Given(BaseModel):
    name: str = ""
    children: int = 2


class Got(BaseModel):
    values: list[str] = []


Body = Callable[[RunContext, Given], Awaitable[Got | Incomplete[Got]]]


def flow(name: str, body: Body) -> Workflow[Given, Got]:
    return Workflow(name, 1, "", Given, Got, body)


async def joined(ctx: RunContext, name: str) -> ChildEnd:
    child = await ctx.spawn(f"subtask:{name}", "leaf", Given(name=name), subtask=name)
    return await ctx.join(child)


async def root_body(ctx: RunContext, given: Given) -> Got:
    names = [f"n{number}" for number in range(given.children)]
    ends = await ctx.gather(*(joined(ctx, name) for name in names))
    return Got(
        values=[
            value for end in ends for value in (end.output or {"values": [end.status]})["values"]
        ]
    )


class Leaves:
    """Child runs that count what they do, fail when told to, and wait at a gate when told to."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.failing: set[str] = set()
        self.held: set[str] = set()
        self.gate = asyncio.Event()
        self.reached = asyncio.Event()

    async def work(self, name: str) -> str:
        self.made.append(name)
        if name in self.held:
            self.reached.set()
            await self.gate.wait()
        if name in self.failing:
            raise StepFailed("told to fail")
        return name.upper()

    async def body(self, ctx: RunContext, given: Given) -> Got:
        return Got(values=[await ctx.step("work", self.work, given.name)])

    def flows(self) -> list[Workflow[Any, Any]]:
        return [flow("root", root_body), flow("leaf", self.body)]


@pytest.fixture
def leaves() -> Leaves:
    return Leaves()


async def child_of(redis: Redis, root: str, name: str) -> str:
    for member in await redis.smembers(keys.tree(root)):
        if await redis.hget(keys.run(member.decode()), "subtask") == name.encode():
            return str(member.decode())
    raise AssertionError(name)


async def test_children_run_and_their_root_goes_on(
    redis: Redis, valkey_url: str, leaves: Leaves
) -> None:
    async with LocalFleet(valkey_url, leaves.flows()) as fleet:
        fleet.worker(slots=1)
        run_id = await fleet.submit("root", "{}")
        record = await fleet.ended(run_id)
        assert (record.status, record.output) == (Status.COMPLETED, {"values": ["N0", "N1"]})
        assert sorted(leaves.made) == ["n0", "n1"]
        events = await fleet.events(run_id)
        assert events.count("subtask.started") == events.count("subtask.completed") == 2
        assert events[-1] == "run.completed"
        child = await child_of(redis, run_id, "n0")
        assert await fleet.events(child) == ["run.created", "run.started", "run.completed"]
        assert (await fleet.record(child)).parent == run_id
        listed = await Records(redis).newest(Wanted("default"))
        assert [one.run_id for one in listed.runs] == [run_id]
        assert await redis.keys("arq:*") == []
        assert await redis.zrange(keys.DUE, 0, -1) == [run_id.encode()]


async def test_a_child_that_fails_fails_alone(valkey_url: str, leaves: Leaves) -> None:
    leaves.failing.add("n0")
    async with LocalFleet(valkey_url, leaves.flows()) as fleet:
        fleet.worker()
        run_id = await fleet.submit("root", "{}")
        record = await fleet.ended(run_id)
        assert record.output == {"values": ["failed", "N1"]}
        assert (await fleet.events(run_id)).count("subtask.failed") == 1


async def test_cancelling_the_root_cancels_its_children(
    redis: Redis, valkey_url: str, leaves: Leaves
) -> None:
    leaves.held |= {"n0", "n1"}
    async with LocalFleet(valkey_url, leaves.flows()) as fleet:
        fleet.worker()
        run_id = await fleet.submit("root", "{}")
        async with asyncio.timeout(10):
            await leaves.reached.wait()
        await fleet.transitions.cancel(run_id, "default")
        children = [one.decode() for one in await redis.smembers(keys.tree(run_id))]
        statuses = {(await fleet.record(child)).status for child in children}
        assert statuses == {Status.CANCELLED}
        async with asyncio.timeout(10):  # the root's own end counts whoever asked for it
            while b'workflow_status_total{status="cancelled"} 2.0' not in fleet.metrics.render():
                await clock.sleep(0.01)
        events = await fleet.events(run_id)
        assert events.count("subtask.cancelled") == 2
        assert events[-1] == "run.cancelled"
        await fleet.transitions.delete(run_id, "default")
        assert await redis.keys("run:*") == []
        assert await redis.keys("index:*") == []


async def test_a_worker_that_dies_repeats_no_child(valkey_url: str, leaves: Leaves) -> None:
    leaves.held.add("n1")
    async with LocalFleet(valkey_url, leaves.flows()) as fleet:
        first = fleet.worker()
        run_id = await fleet.submit("root", "{}")
        async with asyncio.timeout(10):
            await leaves.reached.wait()
        await fleet.dead(first)
        leaves.gate.set()
        fleet.worker()
        record = await fleet.ended(run_id)
        assert record.output == {"values": ["N0", "N1"]}
        assert leaves.made.count("n0") == 1
        assert leaves.made.count("n1") == 2


async def test_a_retry_takes_the_children_along_that_failed(
    redis: Redis, valkey_url: str, leaves: Leaves
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        got = await root_body(ctx, given)
        if "failed" in got.values:
            raise StepFailed("a child failed")
        return got

    leaves.failing.add("n0")
    flows = [flow("root", body), leaves.flows()[1]]
    async with LocalFleet(valkey_url, flows) as fleet:
        fleet.worker()
        run_id = await fleet.submit("root", "{}")
        record = await fleet.ended(run_id)
        assert record.status is Status.FAILED
        leaves.failing.clear()
        child = await child_of(redis, run_id, "n0")
        await fleet.transitions.retry(run_id, "default", record.seq, [], [(child, ["work"])])
        record = await fleet.until(run_id, Status.COMPLETED)
        assert record.output == {"values": ["N0", "N1"]}
        assert leaves.made.count("n1") == 1
        await fleet.events(run_id)


async def test_a_large_output_comes_whole(valkey_url: str) -> None:
    async def large(ctx: RunContext, given: Given) -> Got:
        return Got(values=["x" * 100_000])

    async with LocalFleet(valkey_url, [flow("root", root_body), flow("leaf", large)]) as fleet:
        fleet.worker()
        run_id = await fleet.submit("root", '{"children":1}')
        record = await fleet.ended(run_id)
        assert record.output == {"values": ["x" * 100_000]}


async def test_children_of_children_end_with_the_root(
    redis: Redis, valkey_url: str, leaves: Leaves
) -> None:
    async def middle(ctx: RunContext, given: Given) -> Got:
        child = await ctx.spawn("below", "root", Given(children=1))
        end = await ctx.join(child)
        return Got.model_validate(end.output)

    leaves.held.add("n0")
    async with LocalFleet(valkey_url, [*leaves.flows(), flow("middle", middle)]) as fleet:
        fleet.worker()
        run_id = await fleet.submit("middle", "{}")
        async with asyncio.timeout(10):
            await leaves.reached.wait()
        await fleet.transitions.cancel(run_id, "default")
        members = [one.decode() for one in await redis.smembers(keys.tree(run_id))]
        assert len(members) == 2
        assert {(await fleet.record(one)).status for one in members} == {Status.CANCELLED}
        events = await fleet.events(run_id)
        assert (events.count("subtask.cancelled"), events[-1]) == (2, "run.cancelled")
