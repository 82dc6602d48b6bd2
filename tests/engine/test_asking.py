"""Questions to people: asked once, waited for without a worker, answered once."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse.errors import Conflict, Gone
from posthouse.inputs.model import Answer, Decision, OnTimeout
from posthouse.inputs.store import Inputs, State
from posthouse.runs.model import Status
from posthouse.storage import keys
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Incomplete, Workflow


class Given(BaseModel):
    pass


class Colour(BaseModel):
    colour: str


class Got(BaseModel):
    answers: list[str]


Body = Callable[[RunContext, Given], Awaitable[Got | Incomplete[Got]]]


def flow(body: Body) -> Workflow[Given, Got]:
    return Workflow("flow", 1, "", Given, Got, body)


def said(text: str) -> Answer:
    return Answer(decision=Decision.RESPOND, value={"colour": text})


async def two(ctx: RunContext, given: Given) -> Got:
    answers = await ctx.gather(
        ctx.ask("first", "Which colour?", form=Colour), ctx.ask("second", "And now?", form=Colour)
    )
    return Got(answers=[answer.value["colour"] for answer in answers])


async def test_two_questions_answered_in_any_order_hold_no_worker(
    redis: Redis, valkey_url: str
) -> None:
    async with LocalFleet(valkey_url, [flow(two)]) as fleet:
        first = fleet.worker(slots=1)
        inputs = Inputs(redis)
        run_id = await fleet.submit("flow", "{}", timeout_ms=600_000)
        record = await fleet.until(run_id, Status.AWAITING_INPUT)
        assert record.wait_reason == "input"
        asked = {one.step: one for one in await inputs.inbox("default")}
        assert set(asked) == {"first", "second"}
        assert await redis.zscore(keys.DUE, run_id) is None  # people's time is not the run's
        await fleet.drained(first)
        assert await inputs.answer(asked["second"], "default", said("blue"))
        assert not await inputs.answer(asked["second"], "default", said("blue"))
        with pytest.raises(Conflict):
            await inputs.answer(asked["second"], "default", said("red"))
        fleet.worker(slots=1)
        await fleet.until(run_id, Status.AWAITING_INPUT)
        assert await inputs.answer(asked["first"], "default", said("green"))
        record = await fleet.ended(run_id)
        assert record.output == {"answers": ["green", "blue"]}
        assert await inputs.inbox("default") == []
        events = await fleet.events(run_id)
        assert (events.count("input.requested"), events.count("input.answered")) == (2, 2)
        assert (await inputs.get(asked["first"].input_id, "default")).state is State.ANSWERED
        deadline = int(await redis.hget(keys.run(run_id), "deadline"))
        assert deadline > int(await redis.hget(keys.run(run_id), "started_at")) + 600_000


@pytest.mark.parametrize(
    ("policy", "answers"),
    [(OnTimeout.REJECT, ["reject None"]), (OnTimeout.DEFAULT, ["respond {'colour': 'grey'}"])],
)
async def test_nobody_answers(
    redis: Redis, valkey_url: str, policy: OnTimeout, answers: list[str]
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        answer = await ctx.ask(
            "first", "Which?", expires_in=0.05, on_timeout=policy, default=Colour(colour="grey")
        )
        return Got(answers=[f"{answer.decision} {answer.value}"])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        run_id = await fleet.submit("flow", "{}")
        record = await fleet.ended(run_id)
        assert record.output == {"answers": answers}
        events = await fleet.events(run_id)
        assert events.count("input.expired") == 1
        asked = await Inputs(redis).several(
            [f"{run_id}-{part}" for part in await parts(redis, run_id)], "default"
        )
        with pytest.raises(Gone):
            await Inputs(redis).answer(asked[0], "default", said("late"))


async def parts(redis: Redis, run_id: str) -> list[str]:
    return [name.decode() for name in await redis.hkeys(keys.inputs(run_id))]


async def test_a_question_that_must_be_answered_fails_the_run(valkey_url: str) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        await ctx.ask("first", "Which?", expires_in=0.05, on_timeout=OnTimeout.FAIL)
        return Got(answers=[])

    async with LocalFleet(valkey_url, [flow(body)]) as fleet:
        fleet.worker()
        record = await fleet.ended(await fleet.submit("flow", "{}"))
        assert record.error is not None
        assert record.error.code == "input_expired"


async def test_two_answers_at_once_one_wins(redis: Redis, valkey_url: str) -> None:
    async with LocalFleet(valkey_url, [flow(two)]) as fleet:
        fleet.worker()
        inputs = Inputs(redis)
        run_id = await fleet.submit("flow", "{}")
        await fleet.until(run_id, Status.AWAITING_INPUT)
        for asked in await inputs.inbox("default"):
            ends = await asyncio.gather(
                *(inputs.answer(asked, "default", said(text)) for text in ("red", "blue")),
                return_exceptions=True,
            )
            assert sorted(type(end).__name__ for end in ends) == ["Conflict", "bool"]
        assert (await fleet.ended(run_id)).status is Status.COMPLETED


async def test_a_cancelled_run_asks_no_more(redis: Redis, valkey_url: str) -> None:
    async with LocalFleet(valkey_url, [flow(two)]) as fleet:
        fleet.worker()
        inputs = Inputs(redis)
        run_id = await fleet.submit("flow", "{}")
        await fleet.until(run_id, Status.AWAITING_INPUT)
        asked = await inputs.inbox("default")
        await fleet.transitions.cancel(run_id, "default")
        assert await inputs.inbox("default") == []
        with pytest.raises(Conflict):
            await inputs.answer(asked[0], "default", said("late"))
        await fleet.transitions.delete(run_id, "default")
        assert await redis.keys("*inputs*") == []
