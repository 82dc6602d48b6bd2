"""Runs through a real worker loop on a real server: steps once, crashes, drains, naps, changed code."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from structlog.testing import capture_logs

from posthouse.engine.steps import Bounds
from posthouse.errors import Fatal, ModelUnavailable, RunCode
from posthouse.events.types import SourceFound
from posthouse.runs.model import Status
from posthouse.runs.ownership import Lease
from posthouse.storage import keys
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Incomplete, Workflow


class Given(BaseModel):
    n: int = 0


class Got(BaseModel):
    values: list[int]


Body = Callable[[RunContext, Given], Awaitable[Got | Incomplete[Got]]]


def flow(body: Body, *, name: str = "flow", version: int = 1) -> Workflow[Given, Got]:
    return Workflow(name, version, "", Given, Got, body)


class Calls:
    """Counts what really ran, and lets a test hold a call until it says so."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()

    async def quick(self, name: str) -> int:
        self.made.append(name)
        return len(self.made)

    async def held(self, name: str) -> int:
        self.made.append(name)
        self.reached.set()
        await self.gate.wait()
        return len(self.made)


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def test_a_run_of_steps_completes(redis: Redis, valkey_url: str, calls: Calls) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        first = await ctx.step("first", calls.quick, "first")
        rest = await ctx.gather(*(ctx.step(f"s:{n}", calls.quick, str(n)) for n in range(4)))
        await ctx.emit("found", SourceFound(address="a", title="t"))
        return Got(values=[first, *rest])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        run_id = await fleet.submit("flow", '{"n":3}')
        record = await fleet.ended(run_id)
        assert record.status is Status.COMPLETED
        assert sorted(record.output["values"]) == [1, 2, 3, 4, 5]
        assert await fleet.events(run_id) == [
            "run.created", "run.started", "source.found", "run.completed",
        ]  # fmt: skip
        assert await redis.hlen(keys.journal(run_id)) == 6
        assert await redis.keys("arq:*") == []


@pytest.mark.guarantee("G1")
@pytest.mark.guarantee("G2")
async def test_a_dead_worker_costs_only_the_step_in_flight(
    redis: Redis, valkey_url: str, calls: Calls
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        first = await ctx.step("first", calls.quick, "first")
        second = await ctx.step("second", calls.held, "second")
        return Got(values=[first, second])

    async with LocalFleet(valkey_url, [flow(body)], lease_seconds=0.6) as fleet:
        doomed = fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        await asyncio.wait_for(calls.reached.wait(), 5)
        fleet.worker()
        await fleet.dead(doomed)
        calls.gate.set()
        record = await fleet.ended(run_id)
        assert record.status is Status.COMPLETED
        assert record.epoch == 2
        assert calls.made == ["first", "second", "second"]
        assert await fleet.events(run_id) == [
            "run.created", "run.started", "run.resumed", "run.completed",
        ]  # fmt: skip


@pytest.mark.guarantee("G7")
async def test_a_drained_worker_ends_its_step_and_hands_the_run_on(
    redis: Redis, valkey_url: str, calls: Calls
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        first = await ctx.step("first", calls.held, "first")
        second = await ctx.step("second", calls.quick, "second")
        return Got(values=[first, second])

    async with LocalFleet(valkey_url, [flow(body)], lease_seconds=60) as fleet:
        old = fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        await asyncio.wait_for(calls.reached.wait(), 5)
        draining = asyncio.ensure_future(fleet.drained(old))
        await asyncio.sleep(0)
        calls.gate.set()
        await asyncio.wait_for(draining, 5)
        assert calls.made == ["first"]
        fleet.worker()
        record = await fleet.ended(run_id, seconds=5)
        assert (record.status, record.epoch) == (Status.COMPLETED, 2)
        assert calls.made == ["first", "second"]
        assert await redis.hget(keys.run(run_id), "crashes") == b"0"


@pytest.mark.guarantee("G7")
async def test_a_step_that_outlasts_the_drain_is_cancelled_and_done_again(
    redis: Redis, valkey_url: str, calls: Calls
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        return Got(values=[await ctx.step("first", calls.held, "first")])

    async with LocalFleet(valkey_url, [flow(body)], lease_seconds=60) as fleet:
        old = fleet.worker(drain_seconds=0.05)
        run_id = await fleet.submit("flow", "{}")
        await asyncio.wait_for(calls.reached.wait(), 5)
        await asyncio.wait_for(fleet.drained(old), 5)
        calls.gate.set()
        fleet.worker()
        assert (await fleet.ended(run_id, seconds=5)).status is Status.COMPLETED
        assert calls.made == ["first", "first"]


async def test_the_log_says_why_a_run_waits_and_how_it_ended(redis: Redis, valkey_url: str) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        await ctx.sleep("nap", 0.05)
        if given.n:
            raise Fatal("no such key")
        return Got(values=[])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        with capture_logs() as lines:
            for n in range(2):
                await fleet.ended(await fleet.submit("flow", f'{{"n":{n}}}'))
            async with asyncio.timeout(5):
                while sum(line["event"] == "run_ended" for line in lines) < 2:
                    await redis.blpop(["never"], timeout=0.05)
    parked = [line["wait_reason"] for line in lines if line["event"] == "run_parked"]
    assert parked == ["timer", "timer"]
    ended = [(line["status"], line.get("code")) for line in lines if line["event"] == "run_ended"]
    assert ended == [("completed", None), ("failed", "fatal")]


@pytest.mark.guarantee("G6")
async def test_a_nap_holds_no_slot_and_is_slept_once(
    redis: Redis, valkey_url: str, calls: Calls
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        first = await ctx.step("first", calls.quick, "first")
        await ctx.gather(ctx.sleep("nap", 0.3), ctx.sleep("doze", 0.2))
        return Got(values=[first, await ctx.step("second", calls.quick, "second")])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker(slots=1)
        runs = [await fleet.submit("flow", "{}") for _ in range(3)]
        for run_id in runs:
            assert (await fleet.ended(run_id)).status is Status.COMPLETED
            kinds = await fleet.events(run_id)
            assert kinds.count("run.waiting") == kinds.count("run.resumed") >= 1
        assert len(calls.made) == 6


async def test_failures_are_recorded_and_said_cleanly(redis: Redis, valkey_url: str) -> None:
    async def secret() -> int:
        raise ValueError("secret detail")

    async def body(ctx: RunContext, given: Given) -> Got:
        match given.n:
            case 1:
                await ctx.step("bad", secret)
            case 2:
                raise RuntimeError("secret detail")
            case 3:
                raise Fatal("no such key")
            case 4:
                return Incomplete(Got(values=[7]), RunCode.TIMEOUT, "too slow")  # type: ignore[return-value]
            case 5:
                await ctx.step("a", secret_twice)
                await ctx.step("a", secret_twice)
            case _:
                await ctx.step("not a key!", secret)
        return Got(values=[])

    async def secret_twice() -> int:
        return 1

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        seen = {}
        for n in range(1, 7):
            record = await fleet.ended(await fleet.submit("flow", f'{{"n":{n}}}'))
            assert record.error is not None
            seen[n] = (record.status.value, record.error.code, record.error.message)
        assert seen == {
            1: ("failed", "tool_failed", "step 'bad' failed: ValueError"),
            2: ("failed", "fatal", "the workflow failed with an internal error"),
            3: ("failed", "fatal", "no such key"),
            4: ("incomplete", "timeout", "too slow"),
            5: ("failed", "fatal", "step key 'a' is used twice in this run"),
            6: ("failed", "fatal", "the workflow failed with an internal error"),
        }


async def test_changed_code_waits_and_is_never_failed(
    redis: Redis, valkey_url: str, calls: Calls
) -> None:
    passed = iter(["old", "new", "old"])

    async def body(ctx: RunContext, given: Given) -> Got:
        first = await ctx.step("first", calls.quick, next(passed))
        await ctx.sleep("nap", 0.05)
        return Got(values=[first])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        async with asyncio.timeout(10):
            while (await fleet.record(run_id)).wait_reason != "version":
                await fleet.redis.blpop(["never"], timeout=0.05)
        assert (await fleet.record(run_id)).status is Status.RUNNING
        seconds, _ = await redis.time()
        looks_at = await redis.zscore(keys.DUE, run_id)
        assert looks_at == pytest.approx((seconds + 60) * 1000, abs=5000)
        await redis.hset(keys.waits(run_id), "first", "1|version|")
        await redis.zadd(keys.DUE, {run_id: 1})
        assert (await fleet.ended(run_id)).status is Status.COMPLETED
        assert calls.made == ["old"]


async def test_a_run_that_never_ends_its_steps_is_stopped_at_its_bound(
    redis: Redis, valkey_url: str, calls: Calls
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        for n in range(1000):
            await ctx.step(f"s:{n}", calls.quick, str(n))
        return Got(values=[])

    async with LocalFleet(valkey_url, [flow(body)], bounds=Bounds(steps=25)) as fleet:
        fleet.worker()
        record = await fleet.ended(await fleet.submit("flow", "{}"))
        assert record.status is Status.INCOMPLETE
        assert record.error is not None
        assert record.error.code == "max_iterations"
        assert len(calls.made) == 25


async def test_replay_sees_the_same_time_ids_and_numbers(redis: Redis, valkey_url: str) -> None:
    seen: list[tuple[str, ...]] = []

    async def body(ctx: RunContext, given: Given) -> Got:
        now = await ctx.now("now")
        seen.append((now.isoformat(), str(ctx.uuid("id")), str(ctx.random("dice").random())))
        await ctx.sleep("nap", 0.05)
        return Got(values=[])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        await fleet.ended(await fleet.submit("flow", "{}"))
        assert len(seen) == 2
        assert seen[0] == seen[1]


async def test_large_results_come_back_whole(redis: Redis, valkey_url: str, calls: Calls) -> None:
    async def big() -> str:
        calls.made.append("big")
        return "x" * 200_000

    async def body(ctx: RunContext, given: Given) -> Got:
        text = await ctx.step("big", big)
        await ctx.sleep("nap", 0.05)
        return Got(values=[len(text)])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        record = await fleet.ended(run_id)
        assert record.output == {"values": [200_000]}
        assert calls.made == ["big"]
        assert await redis.scard(keys.blobs(run_id)) == 1
        assert await redis.hstrlen(keys.journal(run_id), "big") < 1000


async def test_many_runs_on_few_slots_all_end(redis: Redis, valkey_url: str, calls: Calls) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        return Got(values=[await ctx.step(f"s:{n}", calls.quick, "x") for n in range(3)])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker(slots=7)
        fleet.worker(slots=5)
        runs = [await fleet.submit("flow", "{}") for _ in range(100)]
        for run_id in runs:
            assert (await fleet.ended(run_id)).status is Status.COMPLETED
        assert len(calls.made) == 300
        assert await redis.keys("arq:*") == []


@pytest.mark.guarantee("G10")
async def test_redis_away_for_longer_than_the_lease_costs_nothing(valkey, calls: Calls) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        first = await ctx.step("first", calls.held, "first")
        return Got(values=[first, await ctx.step("second", calls.quick, "second")])

    async with LocalFleet(valkey.url, [flow(body)], lease_seconds=0.6) as fleet:
        fleet.worker()
        fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        await asyncio.wait_for(calls.reached.wait(), 5)
        # With everysec a write may wait up to two seconds for a slow disk.
        await fleet.redis.execute_command("WAITAOF", 1, 0, 4000)
        await asyncio.to_thread(valkey.kill)
        calls.gate.set()
        await asyncio.sleep(1.0)
        await asyncio.to_thread(valkey.start)
        record = await fleet.ended(run_id)
        assert (record.status, record.epoch) == (Status.COMPLETED, 1)
        assert calls.made == ["first", "second"]


async def test_whatever_a_workflow_raises_ends_its_run_and_nothing_else(
    redis: Redis, valkey_url: str
) -> None:
    async def cancelled() -> int:
        raise asyncio.CancelledError

    async def grouped(ctx: RunContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.sleep("nap", 60))

    async def body(ctx: RunContext, given: Given) -> Got:
        match given.n:
            case 1:
                await ctx.step("a", cancelled)
            case 2:
                await grouped(ctx)
            case 3:
                raise Fatal("half a pair: \ud83d")
            case 4:
                raise SystemExit(3)
            case _:
                Given.model_validate({"n": "x"})
        return Got(values=[])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        for n in range(1, 6):
            record = await fleet.ended(await fleet.submit("flow", f'{{"n":{n}}}'))
            assert (n, record.status, record.epoch) == (n, Status.FAILED, 1)
            assert record.error is not None
            assert record.error.code == "fatal"
            assert "stored input" not in record.error.message


@pytest.mark.guarantee("G2")
async def test_a_replay_sees_the_values_and_errors_of_the_first_time(
    redis: Redis, valkey_url: str
) -> None:
    seen: list[list[object]] = []

    async def pair():
        return (1, 2)

    async def by_number() -> dict:  # type: ignore[type-arg]
        return {1: "a"}

    async def model() -> Got:
        return Got(values=[1])

    async def away() -> int:
        raise ModelUnavailable("the model is away", code=RunCode.CONNECTION)

    async def body(ctx: RunContext, given: Given) -> Got:
        values = [
            await ctx.step("pair", pair),
            await ctx.step("dict", by_number),
            await ctx.step("model", model),
        ]
        try:
            await ctx.step("away", away)
        except ModelUnavailable as error:
            values.append(str(error))
        seen.append(values)
        await ctx.sleep("nap", 0.05)
        return Got(values=[])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        record = await fleet.ended(await fleet.submit("flow", "{}"))
        assert record.status is Status.COMPLETED
        assert seen[0] == seen[1]
        assert seen[0][2:] == [Got(values=[1]), "the model is away"]


async def test_a_result_beyond_its_cap_and_a_fan_beyond_the_bound_are_refused(
    redis: Redis, valkey_url: str, calls: Calls
) -> None:
    async def large() -> str:
        return "x" * 5000

    async def body(ctx: RunContext, given: Given) -> Got:
        if given.n:
            await ctx.step("large", large)
        await ctx.gather(*(ctx.step(f"s:{n}", calls.quick, str(n)) for n in range(500)))
        return Got(values=[])

    bounds = Bounds(steps=25, output_bytes=4000)
    async with LocalFleet(valkey_url, [flow(body)], bounds=bounds) as fleet:
        fleet.worker()
        record = await fleet.ended(await fleet.submit("flow", '{"n":1}'))
        assert record.error is not None
        assert record.error.message == "the result of step 'large' is too large"
        record = await fleet.ended(await fleet.submit("flow", "{}"))
        assert record.status is Status.INCOMPLETE
        assert len(calls.made) == 25


async def test_a_beat_that_meets_the_end_of_its_run_is_no_loss(
    redis: Redis, valkey_url: str, calls: Calls
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        return Got(values=[await ctx.step("a", calls.quick, "a")])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        run_id = await fleet.submit("flow", "{}")
        [claimed] = await fleet.transitions.claim("w", "c", 60_000, 1, [("flow", 1)])
        await fleet.transitions.release(claimed, claimed.seq)
        lease = Lease(run_id, claimed.fence, claimed.seq)
        assert await fleet.transitions.heartbeat("w", 60_000, {}, [lease]) == []
        fleet.worker()
        assert (await fleet.ended(run_id)).status is Status.COMPLETED
