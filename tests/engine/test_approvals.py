"""Agents' calls that wait for a person, on a real journal: no slot held, no event twice, nothing done unasked."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse import clock
from posthouse.agents.loop import AgentLoop
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.errors import Conflict, ToolFailed
from posthouse.inputs.model import Answer, Decision, Kind, OnTimeout
from posthouse.inputs.store import InputRequest, Inputs
from posthouse.journal.model import Prompt
from posthouse.llm.messages import Completion, ModelRequest, ToolMessage
from posthouse.llm.retry import RetryingProvider
from posthouse.llm.routed import one_model
from posthouse.runs.model import Status
from posthouse.storage import keys
from posthouse.telemetry import Metrics
from posthouse.testing.fleet import LocalFleet
from posthouse.testing.provider import call, call_tools, say
from posthouse.tools.define import tool
from posthouse.tools.library.ask_user import ask_user
from posthouse.tools.model import Approval, Effect, Page, Resources, SearchHit, Tool
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

STEP = "clerk/turn:1/tool:send"
APPROVED = Answer(decision=Decision.APPROVE)


class Given(BaseModel):
    pass


class Got(BaseModel):
    text: str


class NoResources:
    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        raise ToolFailed("nothing here", kind="unexpected")

    async def read(self, address: str) -> Page:
        raise ToolFailed("nothing here", kind="unexpected")


class Post:
    """Sends letters: what was sent, and a gate that holds the sending up."""

    def __init__(self, **terms: Any) -> None:
        self.sent: list[str] = []
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.tools: dict[str, Tool] = {"ask_user": ask_user}

        async def send(to: str) -> str:
            """Send a letter.

            Args:
                to: Who gets it.
            """
            self.sent.append(to)
            self.reached.set()
            await self.open.wait()
            return f"sent to {to}"

        self.tools["send"] = tool(**{"effect": Effect.WRITE, "trusted": True} | terms)(send)


class Model:
    """Asks for letters to `names`, once, then says what it was told."""

    def __init__(self, *names: str, tool: str = "send") -> None:
        self.names = names
        self.tool = tool

    async def complete(self, request: ModelRequest, on_text: Any) -> Completion:
        told = [m.text for m in request.messages if isinstance(m, ToolMessage)]
        if told:
            return say(" | ".join(told))
        field = "to" if self.tool == "send" else "question"
        return call_tools(*(call(self.tool, {field: name}) for name in self.names))


async def body(ctx: RunContext, given: Given) -> Got:
    return Got(text=(await ctx.agent("clerk", "Write.")).text)


def fleet_of(url: str, post: Post, model: Model, **options: Any) -> LocalFleet:
    none = NoResources()
    runner = AgentLoop(
        one_model(RetryingProvider(model), "m"),
        post.tools,
        Resources(search=none, pages=none),
        Metrics(CollectorRegistry()),
        timeout_seconds=options.pop("timeout_seconds", 120.0),
    )
    spec = AgentSpec("clerk", "Writes.", "clerk.v1", tools=tuple(post.tools))
    clerk = Agent(spec, Prompt("clerk", 1, "You write."))
    flow = Workflow("flow", 1, "", Given, Got, body)
    return LocalFleet(url, [flow], agents={"clerk": clerk}, runner=runner, **options)


async def asked_in(fleet: LocalFleet, run_id: str) -> list[InputRequest]:
    """The open questions of the run, once it waits for them."""
    await fleet.until(run_id, Status.AWAITING_INPUT)
    return await Inputs(fleet.redis).open_in(run_id, "default")


async def until(found: Callable[[], Awaitable[object]]) -> None:
    """Returns when it is so."""
    async with asyncio.timeout(20):
        while True:
            if await found():
                return
            await clock.sleep(0.01)


async def in_list(redis: Redis, key: str, least: int) -> bool:
    """Whether so many runs stand in the list."""
    return int(await redis.zcard(key)) >= least


async def doubled(fleet: LocalFleet, run_id: str) -> set[tuple[str, str]]:
    """The kinds of events that a step has twice, but for those that say that it began in another process."""
    entries = await fleet.redis.xrange(keys.events(run_id))
    seen = Counter((f[b"type"].decode(), f[b"step"].decode()) for _, f in entries)
    return {one for one, times in seen.items() if times > 1 and one[1]}


async def test_two_calls_wait_and_each_is_made_once_in_whatever_order_they_are_answered(
    redis: Redis, valkey_url: str
) -> None:
    post = Post(requires_approval=True)
    async with fleet_of(valkey_url, post, Model("Ann", "Ben", "Cat")) as fleet:
        fleet.worker(slots=1)
        run_id = await fleet.submit("flow", "{}")
        asked = await asked_in(fleet, run_id)
        assert [one.request.kind for one in asked] == [Kind.APPROVAL] * 3
        assert post.sent == []
        assert await redis.hkeys(keys.starts(run_id)) == []  # neither begun nor intended
        by_name = {one.request.arguments["to"]: one for one in asked}
        inputs = Inputs(redis)
        await inputs.answer(by_name["Cat"], "default", APPROVED)
        async with asyncio.timeout(10):
            await post.reached.wait()
        await asked_in(fleet, run_id)
        rejected = Answer(decision=Decision.REJECT, comment="no")
        await inputs.answer(by_name["Ann"], "default", rejected)
        await inputs.answer(by_name["Ben"], "default", APPROVED)
        record = await fleet.ended(run_id)
        assert post.sent == ["Cat", "Ben"]
        assert record.output is not None
        assert [part[:9] for part in record.output["text"].split(" | ")][1:] == [
            "sent to B",
            "sent to C",
        ]
        assert await doubled(fleet, run_id) == set()
        events = await fleet.events(run_id)
        assert (events.count("tool.started"), events.count("tool.completed")) == (2, 2)
        assert (events.count("tool.failed"), events.count("input.requested")) == (1, 3)
        assert record.usage.tool_calls == 2


async def test_an_answer_that_comes_while_another_call_of_the_turn_still_runs(
    redis: Redis, valkey_url: str
) -> None:
    post = Post()
    post.open.clear()
    post.tools["ask_user"] = ask_user

    class Both(Model):
        async def complete(self, request: ModelRequest, on_text: Any) -> Completion:
            answer = await super().complete(request, on_text)
            asks = call("ask_user", {"question": "Why?"})
            return call_tools(*answer.tool_calls, asks) if answer.tool_calls else answer

    async with fleet_of(valkey_url, post, Both("Ann")) as fleet:
        fleet.worker(slots=1)
        run_id = await fleet.submit("flow", "{}")
        async with asyncio.timeout(10):
            await post.reached.wait()
        inputs = Inputs(redis)
        await until(lambda: inputs.open_ids(run_id, run_id))
        asked = await inputs.open_in(run_id, "default")
        answer = Answer(decision=Decision.RESPOND, value="because")
        await inputs.answer(asked[0], "default", answer)
        post.open.set()
        record = await fleet.ended(run_id)
        assert record.output == {"text": "sent to Ann | because"}
        assert post.sent == ["Ann"]
        assert await doubled(fleet, run_id) == set()


async def test_other_arguments_after_a_retry_are_asked_about_anew(
    redis: Redis, valkey_url: str
) -> None:
    post, model = Post(requires_approval=True), Model("Ann")
    async with fleet_of(valkey_url, post, model) as fleet:
        fleet.worker(slots=1)
        run_id = await fleet.submit("flow", "{}")
        [first] = await asked_in(fleet, run_id)
        post.open.clear()
        await Inputs(redis).answer(first, "default", APPROVED)
        async with asyncio.timeout(10):
            await post.reached.wait()
        await fleet.transitions.cancel(run_id, "default")
        model.names, post.sent = ("Eve",), []
        post.open.set()
        seq = (await fleet.record(run_id)).seq
        again = [one.decode() for one in await redis.hkeys(keys.journal(run_id))]
        await fleet.transitions.retry(run_id, "default", seq, again)
        [second] = await asked_in(fleet, run_id)
        assert (second.request.arguments, post.sent) == ({"to": "Eve"}, [])
        assert second.input_id == first.input_id
        assert second.request.digest != first.request.digest
        assert second.answer is None  # what was said of the first is not said of this
        with pytest.raises(Conflict):
            await Inputs(redis).answer(first, "default", Answer(decision=Decision.REJECT))


@pytest.mark.parametrize(
    ("answer", "sent", "text"),
    [
        (APPROVED, 2, "sent to Ann"),
        (Answer(decision=Decision.RESPOND, value="It came."), 1, "It came."),
    ],
)
async def test_a_call_that_a_crash_left_in_doubt(
    redis: Redis, valkey_url: str, answer: Answer, sent: int, text: str
) -> None:
    post = Post()
    post.open.clear()
    async with fleet_of(valkey_url, post, Model("Ann"), lease_seconds=0.6) as fleet:
        first = fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        async with asyncio.timeout(10):
            await post.reached.wait()
        await fleet.dead(first)
        post.open.set()
        fleet.worker()
        [asked] = await asked_in(fleet, run_id)
        assert (asked.request.kind, asked.step) == (Kind.DOUBT, f"{STEP}/doubt")
        await Inputs(redis).answer(asked, "default", answer)
        record = await fleet.ended(run_id)
        assert (record.output, len(post.sent)) == ({"text": text}, sent)
        assert await doubled(fleet, run_id) == set()
        assert (await fleet.events(run_id)).count("tool.in_doubt") == 1


async def test_a_run_cancelled_while_a_person_is_asked_says_once_that_it_is_in_doubt(
    redis: Redis, valkey_url: str
) -> None:
    post = Post()
    post.open.clear()
    async with fleet_of(valkey_url, post, Model("Ann"), lease_seconds=0.6) as fleet:
        first = fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        async with asyncio.timeout(10):
            await post.reached.wait()
        await fleet.dead(first)
        fleet.worker()
        await asked_in(fleet, run_id)
        await fleet.transitions.cancel(run_id, "default")
        assert (await fleet.events(run_id)).count("tool.in_doubt") == 1


async def test_an_approval_that_nobody_gives_in_time_costs_the_agent_no_time(
    redis: Redis, valkey_url: str
) -> None:
    post = Post(requires_approval=Approval(0.5, OnTimeout.REJECT))
    async with fleet_of(valkey_url, post, Model("Ann"), timeout_seconds=0.4) as fleet:
        fleet.worker(slots=1)
        record = await fleet.ended(await fleet.submit("flow", "{}"))
        assert (record.status, post.sent) == (Status.COMPLETED, [])
        assert record.output is not None
        told = orjson.loads(record.output["text"])
        assert (told["error"], "in time" in told["message"]) == ("rejected", True)
        assert (await fleet.events(record.run_id)).count("input.expired") == 1


@pytest.mark.guarantee("G6")
async def test_a_thousand_runs_that_wait_for_people_hold_no_slot(
    redis: Redis, valkey_url: str
) -> None:
    many = 1000

    async def patient(ctx: RunContext, given: Given) -> Got:
        return Got(text=(await ctx.ask("why", "Why?")).value)

    async def quick(ctx: RunContext, given: Given) -> Got:
        return Got(text="quick")

    flows = [Workflow(f.__name__, 1, "", Given, Got, f) for f in (patient, quick)]
    async with LocalFleet(valkey_url, flows, lease_seconds=6.0) as fleet:
        fleet.worker(slots=1)
        run_ids = await asyncio.gather(*(fleet.submit("patient", "{}") for _ in range(many)))
        waiting = keys.index("default", Status.AWAITING_INPUT)
        await until(lambda: in_list(redis, waiting, many))
        pipe = redis.pipeline(transaction=False)
        for run_id in run_ids:
            pipe.hget(keys.run(run_id), "owner")
        assert set(await pipe.execute()) == {b""}
        assert await redis.zcard(keys.QUEUE) == 0
        assert (await fleet.ended(await fleet.submit("quick", "{}"), seconds=2)).output == {
            "text": "quick"
        }
        inputs = Inputs(redis)
        answer = Answer(decision=Decision.RESPOND, value="because")
        asked = await inputs.inbox("default")
        await asyncio.gather(*(inputs.answer(one, "default", answer) for one in asked))
        done = keys.index("default", Status.COMPLETED)
        await until(lambda: in_list(redis, done, many + 1))
        assert await inputs.inbox("default") == []
