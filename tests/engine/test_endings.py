"""What a worker does when a run is taken from it: cancel, timeout, a suspect's crashes, an effect in doubt."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel, TypeAdapter
from redis.asyncio import Redis

from posthouse import clock
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.engine.dismissals import Dismissals
from posthouse.engine.leases import Leases
from posthouse.events.types import Draft, RunCreated, ToolInDoubt
from posthouse.ids import new_run_id
from posthouse.journal.model import AgentAnswer, Done, Intent, Prompt, Step, Steps
from posthouse.runs.model import Status
from posthouse.runs.ownership import Claimed
from posthouse.runs.transitions import Acceptance, Transitions
from posthouse.storage import keys
from posthouse.storage.connect import connect
from posthouse.storage.ending import ended
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

TEXT: TypeAdapter[str] = TypeAdapter(str)


class Given(BaseModel):
    pass


class Got(BaseModel):
    text: str = ""


Body = Callable[[RunContext, Given], Awaitable[Got]]


def flow(body: Body) -> Workflow[Given, Got]:
    return Workflow("flow", 1, "", Given, Got, body)


class Call:
    """A call that never ends by itself, and says when it began and when it was dropped."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.dropped = asyncio.Event()

    async def wait(self) -> str:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.dropped.set()
        return "never"


@pytest.mark.guarantee("G9")
async def test_cancelling_drops_the_call_in_flight_at_once(redis: Redis, valkey_url: str) -> None:
    call = Call()

    async def body(ctx: RunContext, given: Given) -> Got:
        await ctx.step("before", answer)
        return Got(text=await ctx.step("call", call.wait))

    async with LocalFleet(valkey_url, [flow(body)], lease_seconds=60) as fleet:
        fleet.worker(slots=1)
        run_id = await fleet.submit("flow", "{}")
        async with asyncio.timeout(10):
            await call.began.wait()
        async with asyncio.timeout(2):  # the heartbeat alone would take a third of a lease
            await fleet.transitions.cancel(run_id, "default")
            await call.dropped.wait()
        assert (await fleet.record(run_id)).status is Status.CANCELLED
        assert (await fleet.events(run_id))[-1] == "run.cancelled"
        assert await redis.keys("arq:*") == []
        # The slot is free again.
        call.began.clear()
        await fleet.submit("flow", "{}")
        async with asyncio.timeout(10):
            await call.began.wait()


async def test_a_retry_after_a_cancel_keeps_the_finished_steps(
    redis: Redis, valkey_url: str
) -> None:
    made: list[str] = []
    call = Call()

    async def note() -> str:
        made.append("first")
        return "first"

    async def body(ctx: RunContext, given: Given) -> Got:
        first = await ctx.step("first", note)
        if not call.dropped.is_set():
            await ctx.step("call", call.wait)
        return Got(text=first)

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        async with asyncio.timeout(10):
            await call.began.wait()
            await fleet.transitions.cancel(run_id, "default")
            await call.dropped.wait()
        seen = (await fleet.record(run_id)).seq
        await fleet.transitions.retry(run_id, "default", seen, [])
        record = await fleet.ended(run_id)
        assert (record.status, record.output) == (Status.COMPLETED, {"text": "first"})
        assert made == ["first"]
        assert await fleet.events(run_id) == [
            "run.created", "run.started", "run.cancelled", "run.retried", "run.resumed", "run.completed",
        ]  # fmt: skip


async def test_a_run_past_its_timeout_is_dropped(redis: Redis, valkey_url: str) -> None:
    call = Call()

    async def body(ctx: RunContext, given: Given) -> Got:
        return Got(text=await ctx.step("call", call.wait))

    async with LocalFleet(valkey_url, [flow(body)], lease_seconds=0.6) as fleet:
        fleet.worker()
        run_id = await fleet.submit("flow", "{}", timeout_ms=300)
        record = await fleet.ended(run_id)
        assert record.error is not None
        assert (record.status, record.error.code) == (Status.FAILED, "timeout")
        async with asyncio.timeout(5):
            await call.dropped.wait()
            while b'workflow_status_total{status="failed"} 1.0' not in fleet.metrics.render():
                await clock.sleep(0.01)


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A way to the server, and what makes all connections so far silent; none of them ends."""
    to, writers = urlsplit(url), []
    silent: set[asyncio.StreamWriter] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if writer not in silent:
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, on = await asyncio.open_connection(to.hostname, to.port)
        writers.extend((writer, on))
        await asyncio.gather(forward(reader, on), forward(back, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"redis://127.0.0.1:{port}", lambda: silent.update(writers)


@pytest.mark.guarantee("G9")
async def test_a_subscription_that_went_silent_is_made_anew_and_misses_nothing(
    redis: Redis, valkey_url: str
) -> None:
    """With a lease so long that no beat comes in between."""
    transitions = Transitions(redis)
    leases = Leases(transitions, "w1", 300)
    dropped = [asyncio.Event(), asyncio.Event()]
    created = Draft(event=RunCreated(workflow="flow", version=1))
    for one in dropped:
        await transitions.accept(
            Acceptance(new_run_id(), "default", "flow", 1, "{}", "{}", created, 60_000)
        )
        [run] = await transitions.claim("w1", new_run_id(), 300_000, 1, [("flow", 1)])
        leases.hold(run, clock.monotonic(), one.set)
    first, second = await redis.zrange(keys.index("default", "running"), 0, -1)

    async def listen() -> None:
        while True:
            await dismissals.listen()

    async with proxy(valkey_url) as (url, silence), connect(url) as listening:
        dismissals = Dismissals(listening, "w1", leases, quiet_seconds=0.1)
        task = asyncio.create_task(listen())
        async with asyncio.timeout(10):
            while (await redis.pubsub_numsub(keys.lost("w1")))[0][1] == 0:
                await clock.sleep(0.01)
            silence()
            await transitions.cancel(first.decode(), "default")
            await dropped[0].wait()
            assert not dropped[1].is_set()
            await transitions.cancel(second.decode(), "default")
            await dropped[1].wait()
        await ended([task])


class Deaths:
    """Stands for a process of its own that dies so many times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.carried: list[Claimed] = []

    async def carry(self, run: Claimed) -> bool:
        self.carried.append(run)
        self.left -= 1
        return False

    def begin_drain(self) -> None:
        pass


async def make_suspect(fleet: LocalFleet, redis: Redis) -> str:
    """A run that two workers died under."""
    run_id = await fleet.submit("flow", "{}")
    await redis.hset(keys.run(run_id), "crashes", 2)
    return run_id


async def test_a_suspect_that_dies_alone_has_its_end_and_hurts_nobody(
    redis: Redis, valkey_url: str
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        return Got(text="whole")

    deaths = Deaths(1)
    async with LocalFleet(valkey_url, [flow(body)], isolation=deaths) as fleet:
        poison = await make_suspect(fleet, redis)
        others = [await fleet.submit("flow", "{}") for _ in range(19)]
        fleet.worker()
        record = await fleet.ended(poison)
        assert record.error is not None
        assert (record.status, record.error.code) == (Status.FAILED, "poisoned")
        assert {(await fleet.ended(other)).status for other in others} == {Status.COMPLETED}
        assert [run.run_id for run in deaths.carried] == [poison]
        assert await redis.zrange(keys.index("default", "dead"), 0, -1) == [poison.encode()]


async def test_a_cancelled_suspect_is_killed(redis: Redis, valkey_url: str) -> None:
    alone = Call()

    class Held:
        async def carry(self, run: Claimed) -> bool:
            await alone.wait()
            return True

        def begin_drain(self) -> None:
            pass

    async def body(ctx: RunContext, given: Given) -> Got:
        return Got()

    async with LocalFleet(valkey_url, [flow(body)], isolation=Held(), lease_seconds=60) as fleet:
        run_id = await make_suspect(fleet, redis)
        fleet.worker()
        async with asyncio.timeout(10):
            await alone.began.wait()
            await fleet.transitions.cancel(run_id, "default")
            await alone.dropped.wait()
        assert (await fleet.record(run_id)).status is Status.CANCELLED


async def test_a_suspect_without_a_place_goes_where_there_is_one(
    redis: Redis, valkey_url: str
) -> None:
    carried: set[str] = set()
    full, third = asyncio.Event(), asyncio.Event()

    class Cell:
        async def carry(self, run: Claimed) -> bool:
            carried.add(run.run_id)
            if len(carried) == 2:
                full.set()
            if len(carried) == 3:
                third.set()
            await asyncio.Event().wait()
            return True

        def begin_drain(self) -> None:
            pass

    async def body(ctx: RunContext, given: Given) -> Got:
        return Got()

    async with LocalFleet(valkey_url, [flow(body)], isolation=Cell(), lease_seconds=0.6) as fleet:
        runs = {await make_suspect(fleet, redis) for _ in range(3)}
        fleet.worker(slots=3)
        async with asyncio.timeout(10):
            await full.wait()
            fleet.worker(slots=1)
            await third.wait()
        assert carried == runs
        assert {await redis.hget(keys.run(run), "crashes") for run in runs} == {b"2"}


class Clerk:
    """An agent that does one thing to the world; `repeat` says what becomes of it when that is in doubt."""

    def __init__(self, *, repeat: bool) -> None:
        self.sent: list[str] = []
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()
        self._repeat = repeat

    async def run(
        self, steps: Steps, agent: Agent, *, key: str, task: str, **_: object
    ) -> AgentAnswer:
        step = f"{key}/turn:1/tool:c"

        async def send() -> Done[str]:
            self.sent.append(task)
            self.reached.set()
            await self.gate.wait()
            return Done("sent")

        doubt = Draft(event=ToolInDoubt(tool="send", call_id="c"), agent=key, step=step)
        intent = Intent(doubt, None if self._repeat else nobody_knows)
        text = await steps.run(Step(step, send, TEXT, intent=intent))
        return AgentAnswer(text, (), 1)


@pytest.mark.parametrize(
    ("repeat", "text", "sent"), [(True, "sent", 2), (False, "nobody knows", 1)]
)
async def test_an_effect_that_a_crash_left_in_doubt(
    redis: Redis, valkey_url: str, repeat: bool, text: str, sent: int
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        return Got(text=(await ctx.agent("clerk", "a letter")).text)

    clerk = Clerk(repeat=repeat)
    agents = {"clerk": Agent(AgentSpec("clerk", "", "clerk.v1"), Prompt("clerk", 1, "x"))}
    async with LocalFleet(
        valkey_url, [flow(body)], agents=agents, runner=clerk, lease_seconds=0.6
    ) as fleet:
        first = fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        async with asyncio.timeout(10):
            await clerk.reached.wait()
        await fleet.dead(first)
        clerk.gate.set()
        fleet.worker()
        record = await fleet.ended(run_id)
        assert record.output == {"text": text}
        assert len(clerk.sent) == sent
        assert (await fleet.events(run_id)).count("tool.in_doubt") == 1


async def nobody_knows() -> Done[str]:
    return Done("nobody knows")


async def answer() -> str:
    return "yes"


async def test_an_effect_in_doubt_stays_so_for_a_retry(redis: Redis, valkey_url: str) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        return Got(text=(await ctx.agent("clerk", "a letter")).text)

    clerk = Clerk(repeat=False)
    agents = {"clerk": Agent(AgentSpec("clerk", "", "clerk.v1"), Prompt("clerk", 1, "x"))}
    async with LocalFleet(valkey_url, [flow(body)], agents=agents, runner=clerk) as fleet:
        fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        async with asyncio.timeout(10):
            await clerk.reached.wait()
        await fleet.transitions.cancel(run_id, "default")
        clerk.gate.set()
        await fleet.transitions.retry(run_id, "default", (await fleet.record(run_id)).seq, [])
        record = await fleet.ended(run_id)
        assert (record.output, len(clerk.sent)) == ({"text": "nobody knows"}, 1)
