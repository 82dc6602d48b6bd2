"""Budgets on real workers: what a tree of runs spends, what is kept when it is spent, and who gives more."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse.agents.loop import AgentLoop
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.budget.ledger import Ledger
from posthouse.budget.model import Budget, BudgetState, OnExceeded, words_for
from posthouse.control.journal import Journal
from posthouse.control.retrying import Retries, steps_to_repeat
from posthouse.control.usage import Accounts
from posthouse.errors import RunCode, ToolFailed
from posthouse.inputs.model import Answer, Decision, Kind
from posthouse.inputs.store import Inputs
from posthouse.journal.model import ChildEnd, Prompt
from posthouse.llm.messages import Completion, ModelRequest, Tokens, ToolOffer
from posthouse.llm.prices import prices_of
from posthouse.llm.retry import RetryingProvider
from posthouse.llm.routed import Routed
from posthouse.llm.router import Reference, Routes
from posthouse.runs.model import Status
from posthouse.storage import keys
from posthouse.telemetry import Metrics
from posthouse.testing.fleet import LocalFleet
from posthouse.testing.provider import Line, ScriptedProvider, call, call_tools, say
from posthouse.tools.model import (
    Effect,
    Page,
    Resources,
    SearchHit,
    Source,
    Tool,
    ToolAnswer,
    ToolContext,
)
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Incomplete, Workflow

CHILDREN = 10
CENT = 10_000_000
# 0.1 million nano-USD to read 100 tokens, 0.3 million to write 30: 25 such calls cost a cent.
PRICES = prices_of('{"at:m": {"input": 1, "output": 10}, "at:cheap": {"input": 1, "output": 10}}')
READ, WRITTEN = 100, 30


class Given(BaseModel):
    name: str = ""


class Got(BaseModel):
    texts: list[str] = []
    sources: int = 0


class Nothing:
    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        raise ToolFailed("nothing here", kind="unexpected")

    async def read(self, address: str) -> Page:
        raise ToolFailed("nothing here", kind="unexpected")


async def look(context: ToolContext, arguments: str) -> ToolAnswer:
    source = Source(address=f"doc://{context.run_id}/{context.step}", title="One")
    return ToolAnswer(text=f"seen in {context.step}", sources=(source,))


LOOK = Tool(
    ToolOffer(name="look", description="Looks.", parameters={}), Effect.READ, 30.0, 32768, look
)
SCOUT = Agent(
    AgentSpec("scout", "Looks.", "scout.v1", tools=("look",), max_output_tokens=200),
    Prompt("scout", 1, "You look."),
)


def fleet_of(
    url: str,
    provider: ScriptedProvider,
    *,
    smart: Sequence[str] = ("m",),
    fast: Sequence[str] = ("m",),
    lease_seconds: float = 1.0,
) -> LocalFleet:
    routes = Routes(
        tuple(Reference("at", name) for name in smart), tuple(Reference("at", n) for n in fast)
    )
    loop = AgentLoop(
        Routed({"at": RetryingProvider(provider)}, routes),
        {"look": LOOK},
        Resources(search=Nothing(), pages=Nothing()),
        Metrics(CollectorRegistry()),
        max_iterations=100,
        prices=PRICES,
    )
    flows: list[Workflow[Any, Any]] = [
        Workflow("leaf", 1, "", Given, Got, leaf),
        Workflow("fan", 1, "", Given, Got, fan),
        Workflow("relay", 1, "", Given, Got, relay),
    ]
    return LocalFleet(url, flows, agents={"scout": SCOUT}, runner=loop, lease_seconds=lease_seconds)


async def leaf(ctx: RunContext, given: Given) -> Got | Incomplete[Got]:
    answer = await ctx.agent("scout", f"Look around {given.name}.")
    got = Got(texts=[answer.text], sources=len(answer.sources))
    if answer.stopped is not None:
        return Incomplete(got, answer.stopped, words_for(answer.limit))
    return got


async def fan(ctx: RunContext, given: Given) -> Got | Incomplete[Got]:
    async def one(number: int) -> ChildEnd:
        return await ctx.join(await ctx.spawn(f"leaf:{number}", "leaf", Given(name=str(number))))

    ends = await ctx.gather(*(one(number) for number in range(CHILDREN)))
    got = Got(
        texts=[text for end in ends if end.output for text in end.output["texts"] if text],
        sources=sum(end.output["sources"] for end in ends if end.output),
    )
    codes = {end.error["code"] for end in ends if end.error}
    if codes:
        return Incomplete(got, RunCode(*codes), "Some were stopped.")
    return got


async def relay(ctx: RunContext, given: Given) -> Got | Incomplete[Got]:
    """The second is told what the first one ended with."""
    texts: list[str] = []
    stopped = False
    for number in range(2):
        name = " ".join(texts) or given.name
        end = await ctx.join(await ctx.spawn(f"leaf:{number}", "leaf", Given(name=name)))
        texts += [f"{text} ({end.status})" for text in (end.output or {}).get("texts", [])]
        stopped = stopped or end.error is not None
    got = Got(texts=texts)
    return Incomplete(got, RunCode.BUDGET_EXCEEDED, "Some were stopped.") if stopped else got


def answering(text: str = "", *, used: Tokens | None = None) -> Completion:
    """A look, with a note; or an answer."""
    completion = say(text) if text else call_tools(call("look", "{}"), text="So far, so good.")
    return completion.model_copy(update={"tokens": used or Tokens(input=READ, output=WRITTEN)})


class Endless:
    """Looks for ever, and remembers what the budget was while its calls were in flight."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.root = ""
        self.states: list[BudgetState] = []

    async def __call__(self, request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        state = await Ledger(self._redis).of(self.root)
        assert state is not None
        self.states.append(state)
        assert request.max_output_tokens is not None
        used = Tokens(input=READ, output=min(WRITTEN, request.max_output_tokens))
        return answering(used=used)


async def budget_of(fleet: LocalFleet, run_id: str) -> BudgetState:
    state = await Ledger(fleet.redis).of(run_id)
    assert state is not None
    return state


async def exceeded(fleet: LocalFleet, run_id: str) -> list[dict[str, str]]:
    entries = await fleet.redis.xrange(keys.events(run_id))
    return [orjson.loads(f[b"data"]) for _, f in entries if f[b"type"] == b"budget.exceeded"]


def endless(count: int = 200) -> ScriptedProvider:
    return ScriptedProvider([answering()] * count)


@pytest.mark.guarantee("G8")
async def test_ten_children_spend_no_more_than_their_root_may(
    redis: Redis, valkey_url: str
) -> None:
    model = Endless(redis)
    provider = ScriptedProvider([model] * 200)
    async with fleet_of(valkey_url, provider) as fleet:
        run_id = model.root = await fleet.submit("fan", "{}", budget=Budget(usd=0.01))
        fleet.worker(slots=6)
        fleet.worker(slots=6)
        record = await fleet.ended(run_id, seconds=25)

        assert record.status is Status.INCOMPLETE
        assert record.error is not None
        assert record.error.code == "budget_exceeded"
        # What each had is kept.
        assert set(record.output["texts"]) == {"So far, so good."}
        assert record.output["sources"] == len(model.states)
        at_any_time = [
            state.spent["nano_usd"] + state.reserved["nano_usd"] for state in model.states
        ]
        assert max(at_any_time) <= CENT
        last = await budget_of(fleet, run_id)
        assert last.spent["nano_usd"] == record.usage.nano_usd <= CENT
        assert last.percent >= 80
        assert set(last.reserved.values()) == {0}
        assert set(last.lost.values()) == {0}
        kinds = await fleet.events(run_id)
        assert (kinds.count("budget.warning"), kinds.count("budget.exceeded")) == (1, 1)

        account = await Accounts(redis).of(record)
        assert account.total.nano_usd == record.usage.nano_usd
        assert account.total.model_calls == record.usage.model_calls == len(model.states)
        assert account.by_model["at:m"].nano_usd == record.usage.nano_usd
        assert len(account.by_run) == CHILDREN + 1


@pytest.mark.parametrize(
    ("budget", "what"),
    [
        (Budget(model_calls=3), "model_calls"),
        (Budget(tokens=1500), "tokens"),
        (Budget(tool_calls=3), "tool_calls"),
    ],
)
async def test_a_model_that_loops_for_ever_stops_at_the_limit(
    valkey_url: str, budget: Budget, what: str
) -> None:
    async with fleet_of(valkey_url, endless()) as fleet:
        fleet.worker()
        run_id = await fleet.submit("leaf", "{}", budget=budget)
        record = await fleet.ended(run_id)
        assert (record.status, record.output["texts"]) == (Status.INCOMPLETE, ["So far, so good."])
        assert record.output["sources"] >= 3
        assert record.error is not None
        assert (record.error.code, record.error.message) == ("budget_exceeded", words_for(what))
        assert await exceeded(fleet, run_id) == [{"limit": what, "action": "incomplete"}]
        state = await budget_of(fleet, run_id)
        assert all(state.spent[name] <= limit for name, limit in state.limits.items())


async def test_a_run_may_rather_fail(valkey_url: str) -> None:
    async with fleet_of(valkey_url, endless()) as fleet:
        fleet.worker()
        budget = Budget(model_calls=2, on_exceeded=OnExceeded.FAIL)
        record = await fleet.ended(await fleet.submit("leaf", "{}", budget=budget))
        assert record.status is Status.FAILED
        assert record.error is not None
        assert record.error.code == "budget_exceeded"
        assert record.usage.model_calls == 2


async def asked_for_more(fleet: LocalFleet, run_id: str, *lines: Answer) -> None:
    """Answers each question in its turn."""
    inputs = Inputs(fleet.redis)
    for line in lines:
        await fleet.until(run_id, Status.AWAITING_INPUT)
        [asked] = await inputs.inbox("default")
        assert asked.request.kind is Kind.BUDGET
        await inputs.answer(asked, "default", line)


def more(**amounts: float) -> Answer:
    return Answer(decision=Decision.APPROVE, value=amounts)


@pytest.mark.parametrize(
    ("budget", "given"),
    [
        (Budget(model_calls=2, on_exceeded=OnExceeded.ASK), {"model_calls": 3}),
        (Budget(tool_calls=1, on_exceeded=OnExceeded.ASK), {"tool_calls": 5}),
    ],
)
async def test_a_person_gives_more_and_the_run_goes_on(
    valkey_url: str, budget: Budget, given: dict[str, float]
) -> None:
    provider = ScriptedProvider([*[answering()] * 3, answering("The end.")])
    async with fleet_of(valkey_url, provider) as fleet:
        fleet.worker()
        run_id = await fleet.submit("leaf", "{}", budget=budget)
        await asked_for_more(fleet, run_id, more(**given))
        record = await fleet.ended(run_id)
        assert (record.status, record.output["texts"]) == (Status.COMPLETED, ["The end."])
        assert len(provider.requests) == 4


async def test_too_little_more_is_asked_for_again_and_no_is_no(valkey_url: str) -> None:
    async with fleet_of(valkey_url, endless()) as fleet:
        fleet.worker()
        budget = Budget(model_calls=1, on_exceeded=OnExceeded.ASK)
        run_id = await fleet.submit("leaf", "{}", budget=budget)
        answers = (more(usd=1), more(model_calls=1), Answer(decision=Decision.REJECT))
        await asked_for_more(fleet, run_id, *answers)
        record = await fleet.ended(run_id)
        assert (record.status, record.usage.model_calls) == (Status.INCOMPLETE, 2)
        assert record.output["texts"] == ["So far, so good."]


async def test_what_a_person_gives_after_a_retry_counts_too(valkey_url: str) -> None:
    provider = ScriptedProvider([*[answering()] * 2, answering("The end.")])
    async with fleet_of(valkey_url, provider) as fleet:
        fleet.worker()
        budget = Budget(model_calls=1, on_exceeded=OnExceeded.ASK)
        run_id = await fleet.submit("leaf", "{}", budget=budget)
        no = Answer(decision=Decision.REJECT)
        await asked_for_more(fleet, run_id, more(model_calls=1), no)
        assert (await fleet.ended(run_id)).status is Status.INCOMPLETE
        key = "scout/turn:2/budget"
        [journal] = await Journal(fleet.redis).several([run_id])
        again = tuple(steps_to_repeat(journal, key))
        record = await fleet.record(run_id)
        await fleet.transitions.retry(run_id, "default", record.seq, again)
        await asked_for_more(fleet, run_id, more(model_calls=5))
        record = await fleet.ended(run_id)
        assert (record.status, record.output["texts"]) == (Status.COMPLETED, ["The end."])


async def retried(fleet: LocalFleet, run_id: str, budget: Budget | None = None) -> None:
    """As the route does it for a run that ended at its budget."""
    record = await fleet.record(run_id)
    again = await Retries(fleet.redis, Journal(fleet.redis)).of(run_id, None, afresh=True)
    limits = budget.changes() if budget else []
    await fleet.transitions.retry(
        run_id, "default", record.seq, again.steps, again.children, limits
    )


@pytest.mark.parametrize(
    ("first", "then", "calls"),
    [
        (Budget(model_calls=2), Budget(model_calls=4), 4),
        (Budget(model_calls=2, on_exceeded=OnExceeded.FAIL), Budget(model_calls=4), 4),
        # The call that was refused is made, and the turn that was to be the last one is asked anew.
        (Budget(tool_calls=1), Budget(tool_calls=5), 6),
    ],
)
async def test_a_retry_with_higher_limits_goes_on_where_the_run_was_stopped(
    valkey_url: str, first: Budget, then: Budget, calls: int
) -> None:
    lines = [answering()] * 2 if first.model_calls else [*[answering()] * 2, answering("Enough.")]
    provider = ScriptedProvider(
        [*lines, *[answering()] * (calls - len(lines) - 1), answering("The end.")]
    )
    async with fleet_of(valkey_url, provider) as fleet:
        fleet.worker()
        run_id = await fleet.submit("leaf", "{}", budget=first)
        stopped = await fleet.ended(run_id)
        assert stopped.error is not None
        assert stopped.error.code == "budget_exceeded"
        await retried(fleet, run_id, then)
        record = await fleet.ended(run_id)
        assert (record.status, record.output["texts"]) == (Status.COMPLETED, ["The end."])
        assert len(provider.requests) == calls
        state = await budget_of(fleet, run_id)
        assert state.on_exceeded is first.on_exceeded
        assert len(await exceeded(fleet, run_id)) == 1


async def test_a_retry_without_more_ends_where_it_ended_and_asks_no_model(valkey_url: str) -> None:
    async with fleet_of(valkey_url, endless()) as fleet:
        fleet.worker()
        run_id = await fleet.submit("leaf", "{}", budget=Budget(model_calls=2))
        first = await fleet.ended(run_id)
        await retried(fleet, run_id)
        second = await fleet.ended(run_id)
        assert (second.status, second.output) == (first.status, first.output)
        assert second.usage.model_calls == 2
        assert len(await exceeded(fleet, run_id)) == 2


async def test_a_retry_asks_a_person_anew_who_gave_no_more(valkey_url: str) -> None:
    provider = ScriptedProvider([*[answering()] * 2, answering("The end.")])
    async with fleet_of(valkey_url, provider) as fleet:
        fleet.worker()
        budget = Budget(model_calls=1, on_exceeded=OnExceeded.ASK)
        run_id = await fleet.submit("leaf", "{}", budget=budget)
        no = Answer(decision=Decision.REJECT)
        await asked_for_more(fleet, run_id, more(model_calls=1), no)
        assert (await fleet.ended(run_id)).status is Status.INCOMPLETE
        await retried(fleet, run_id)
        await asked_for_more(fleet, run_id, more(model_calls=1))
        record = await fleet.ended(run_id)
        assert (record.status, record.usage.model_calls) == (Status.COMPLETED, 3)
        assert (await budget_of(fleet, run_id)).limits["model_calls"] == 3


async def test_a_retry_with_more_takes_the_children_along_that_were_stopped(
    valkey_url: str,
) -> None:
    provider = ScriptedProvider([answering("The end.")] * CHILDREN)
    async with fleet_of(valkey_url, provider) as fleet:
        fleet.worker()
        run_id = await fleet.submit("fan", "{}", budget=Budget(model_calls=3))
        first = await fleet.ended(run_id)
        assert (first.status, len(first.output["texts"])) == (Status.INCOMPLETE, 3)
        await retried(fleet, run_id, Budget(model_calls=CHILDREN))
        record = await fleet.ended(run_id)
        assert (record.status, len(record.output["texts"])) == (Status.COMPLETED, CHILDREN)
        assert record.usage.model_calls == len(provider.requests) == CHILDREN


async def test_a_child_that_had_not_begun_is_made_anew_of_what_there_is_then(
    valkey_url: str,
) -> None:
    provider = ScriptedProvider([answering(), answering("Found."), answering("Told.")])
    async with fleet_of(valkey_url, provider) as fleet:
        fleet.worker()
        run_id = await fleet.submit("relay", "{}", budget=Budget(model_calls=1))
        first = await fleet.ended(run_id)
        assert first.output["texts"] == ["So far, so good. (incomplete)", " (incomplete)"]
        await retried(fleet, run_id, Budget(model_calls=3))
        record = await fleet.ended(run_id)
        assert record.output["texts"] == ["Found. (completed)", "Told. (completed)"]
        assert record.usage.model_calls == len(provider.requests) == 3
        [told] = [part for part in provider.requests[-1].messages if part.role == "user"]
        assert "Found. (completed)" in str(told)


@pytest.mark.guarantee("G8")
async def test_what_a_dead_worker_reserved_is_spent(valkey_url: str) -> None:
    reached = asyncio.Event()

    async def hang(request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    provider = ScriptedProvider([hang, answering("The end.")])
    async with fleet_of(valkey_url, provider, lease_seconds=0.6) as fleet:
        doomed = fleet.worker()
        run_id = await fleet.submit("leaf", "{}", budget=Budget(usd=0.01))
        await asyncio.wait_for(reached.wait(), 10)
        held = (await budget_of(fleet, run_id)).reserved
        fleet.worker()
        await fleet.dead(doomed)
        record = await fleet.ended(run_id)

        assert (record.status, record.epoch) == (Status.COMPLETED, 2)
        state = await budget_of(fleet, run_id)
        assert state.lost == held
        assert state.lost["nano_usd"] > 0
        assert set(state.reserved.values()) == {0}
        assert state.spent["nano_usd"] == state.lost["nano_usd"] + record.usage.nano_usd
        assert state.spent["model_calls"] == 2


async def test_a_model_without_a_price_is_passed_over_where_dollars_count(valkey_url: str) -> None:
    provider = ScriptedProvider([answering("The end.")])
    async with fleet_of(valkey_url, provider, smart=("unpriced", "m")) as fleet:
        fleet.worker()
        run_id = await fleet.submit("leaf", "{}", budget=Budget(usd=1))
        record = await fleet.ended(run_id)
        assert record.status is Status.COMPLETED
        assert [request.model for request in provider.requests] == ["m"]
        assert await exceeded(fleet, run_id) == []
        assert record.usage.unpriced_calls == 0


async def test_no_model_with_a_price_is_said(valkey_url: str) -> None:
    provider = ScriptedProvider([answering("The end.")])
    async with fleet_of(valkey_url, provider, smart=("unpriced",)) as fleet:
        fleet.worker()
        run_id = await fleet.submit("leaf", "{}", budget=Budget(usd=1))
        record = await fleet.ended(run_id)
        assert record.status is Status.INCOMPLETE
        assert record.error is not None
        assert record.error.message == words_for("price")
        assert await exceeded(fleet, run_id) == [{"limit": "price", "action": "incomplete"}]
        without = await fleet.submit("leaf", "{}", budget=Budget(tokens=10_000))
        record = await fleet.ended(without)
        assert (record.status, record.usage.unpriced_calls) == (Status.COMPLETED, 1)


def chosen(requests: Iterable[ModelRequest]) -> list[str]:
    return [request.model for request in requests]


async def test_from_four_fifths_on_the_cheaper_model_is_asked(valkey_url: str) -> None:
    lines: list[Line] = [answering() for _ in range(5)]
    provider = ScriptedProvider([*lines, answering("The end.")])
    async with fleet_of(valkey_url, provider, fast=("cheap",)) as fleet:
        fleet.worker()
        run_id = await fleet.submit("leaf", "{}", budget=Budget(model_calls=6))
        record = await fleet.ended(run_id)
        assert record.status is Status.COMPLETED
        assert chosen(provider.requests) == ["m"] * 5 + ["cheap"]
        entries = await fleet.redis.xrange(keys.events(run_id))
        routed = [orjson.loads(f[b"data"]) for _, f in entries if f[b"type"] == b"model.routed"]
        assert [one["reason"] for one in routed] == ["tier"] * 5 + ["cheaper"]
