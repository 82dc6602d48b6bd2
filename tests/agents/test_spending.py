"""What requests cost and wasted, whatever became of them, and what an agent does when it may spend no more."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest
from prometheus_client import CollectorRegistry

from posthouse.agents.loop import AgentLoop
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.budget.model import Granted, OnExceeded, Refused, Reservation, Verdict
from posthouse.errors import (
    ContentRefused,
    EndpointDown,
    ModelUnavailable,
    RunCode,
    RunFailed,
    ToolFailed,
)
from posthouse.journal.model import AgentAnswer, Parked, Prompt, Usage
from posthouse.llm.messages import Completion, ModelRequest
from posthouse.llm.prices import prices_of
from posthouse.llm.provider import Listener
from posthouse.llm.retry import RetryingProvider
from posthouse.llm.routed import Routed
from posthouse.llm.router import Reference, Routes
from posthouse.telemetry import Metrics
from posthouse.testing.provider import Line, ScriptedProvider, say
from posthouse.testing.steps import MemorySteps
from posthouse.tools.model import Page, Resources, SearchHit

# 1,000 nano-USD for a token read, 2,000 for one written.
PRICES = prices_of('{"at:m": {"input": 1, "output": 2}, "at:n": {"input": 10, "output": 20}}')
ANSWERED = Usage(model_calls=1, input_tokens=10, output_tokens=5, nano_usd=20_000)
SAID = "This is a beginning."
WRITTEN = len(SAID) // 4
TASK = "Topic: posts"
# "You look.", and the task.
READ = -(-len(f"You look.{TASK}") // 4)
DOWN = ModelUnavailable("down", code=RunCode.SERVER_ERROR)


class Nothing:
    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        raise ToolFailed("nothing here", kind="unexpected")

    async def read(self, address: str) -> Page:
        raise ToolFailed("nothing here", kind="unexpected")


class Bench:
    """One agent, its script, and what the budget says to each reservation."""

    def __init__(self) -> None:
        self.steps = MemorySteps()
        self.provider = ScriptedProvider()
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)

    async def run(
        self,
        *lines: Line,
        models: Sequence[str] = ("m",),
        fast: Sequence[str] = ("m",),
        timeout_seconds: float = 120.0,
    ) -> AgentAnswer:
        self.provider = ScriptedProvider(lines)

        async def sleep(seconds: float) -> None:
            pass

        routes = Routes(
            tuple(Reference("at", name) for name in models),
            tuple(Reference("at", name) for name in fast),
        )
        loop = AgentLoop(
            Routed({"at": RetryingProvider(self.provider, sleep=sleep)}, routes, sleep=sleep),
            {},
            Resources(search=Nothing(), pages=Nothing()),
            self.metrics,
            prices=PRICES,
            timeout_seconds=timeout_seconds,
        )
        scout = Agent(AgentSpec("scout", "Looks.", "scout.v1"), Prompt("scout", 1, "You look."))
        return await loop.run(self.steps, scout, key="scout", task=TASK)

    def budget(self, *verdicts: Verdict) -> None:
        """What is said to one reservation after another; the last for ever."""
        said = list(verdicts)

        def verdict(wanted: Reservation) -> Verdict:
            return said.pop(0) if len(said) > 1 else said[0]

        self.steps.budget = verdict

    @property
    def usage(self) -> Usage:
        [usage] = self.steps.kept.usage
        return usage


@pytest.fixture
def bench() -> Bench:
    return Bench()


def breaks_off(
    error: Exception, text: str = SAID
) -> Callable[[ModelRequest, Callable[[str], None]], Completion]:
    def line(request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        on_text(text)
        raise error

    return line


def wasted(times: int = 1, *, per_read: int = 1000, text: int = WRITTEN) -> dict[str, int]:
    return {
        "wasted_tokens": times * (READ + text),
        "wasted_nano_usd": times * per_read * (READ + 2 * text),
    }


async def test_a_call_costs_what_its_tokens_cost(bench: Bench) -> None:
    await bench.run(say("The answer."))
    assert bench.usage == ANSWERED
    assert bench.registry.get_sample_value("llm_cost_usd_total", {"model": "m"}) == 0.00002


async def test_a_price_that_nobody_knows_is_not_nothing(bench: Bench) -> None:
    await bench.run(say("The answer."), models=("who",))
    expected = Usage(model_calls=1, input_tokens=10, output_tokens=5, unpriced_calls=1)
    assert bench.usage == expected
    assert bench.registry.get_sample_value("llm_cost_usd_total", {"model": "who"}) is None


async def test_a_try_that_had_begun_to_answer_is_wasted_and_one_that_had_not_is_not(
    bench: Bench,
) -> None:
    await bench.run(breaks_off(DOWN), DOWN, say("The answer."))
    assert bench.usage == ANSWERED + Usage(**wasted())


def calls_and_breaks_off(
    text: str = "",
) -> Callable[[ModelRequest, Callable[[str], None]], Completion]:
    """After the name and arguments of a call, as long as SAID, and the text."""

    def line(request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        assert isinstance(on_text, Listener)
        for piece in (SAID[:7], SAID[7:]):
            on_text.hear(len(piece))
        if text:
            on_text(text)
        raise DOWN

    return line


async def test_a_try_that_was_cut_in_its_calls_is_wasted_too(bench: Bench) -> None:
    await bench.run(calls_and_breaks_off(), DOWN, say("The answer."))
    assert bench.usage == ANSWERED + Usage(**wasted())


async def test_calls_and_text_of_a_cut_try_are_counted_together_and_each_try_by_itself(
    bench: Bench,
) -> None:
    lines = (calls_and_breaks_off(SAID), breaks_off(DOWN), calls_and_breaks_off())
    await bench.run(*lines, say("The answer."), models=("m", "n"))
    expected = Usage(**wasted(text=2 * WRITTEN)) + Usage(**wasted(2))
    answered = Usage(model_calls=1, input_tokens=10, output_tokens=5, nano_usd=200_000)
    assert bench.usage == answered + expected


async def test_calls_that_an_agents_time_was_not_enough_for_are_counted(bench: Bench) -> None:
    async def hang(request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        assert isinstance(on_text, Listener)
        on_text.hear(len(SAID))
        await asyncio.Event().wait()
        raise AssertionError

    await bench.run(hang, timeout_seconds=0.05)
    assert (bench.usage.input_tokens, bench.usage.output_tokens) == (READ, WRITTEN)


async def test_what_another_model_wasted_is_counted_at_its_own_price(bench: Bench) -> None:
    await bench.run(*[breaks_off(DOWN)] * 3, say("The answer."), models=("n", "m"))
    assert bench.usage == ANSWERED + Usage(**wasted(3, per_read=10_000))


@pytest.mark.parametrize(
    ("lines", "error", "usage"),
    [
        ([DOWN] * 3, ModelUnavailable, Usage(model_calls=1)),
        ([breaks_off(DOWN)] * 3, ModelUnavailable, Usage(model_calls=1, **wasted(3))),
        (
            [ContentRefused("no")],
            ContentRefused,
            Usage(model_calls=1, **wasted(text=0)),
        ),
    ],
)
async def test_a_turn_that_fails_says_what_it_took(
    bench: Bench, lines: list[Line], error: type[Exception], usage: Usage
) -> None:
    with pytest.raises(error):
        await bench.run(*lines)
    assert bench.usage == usage


async def test_without_a_budget_nothing_is_limited(bench: Bench) -> None:
    await bench.run(say("The answer."))
    assert bench.provider.requests[0].max_output_tokens is None


async def test_the_worst_case_is_reserved_and_the_rest_is_the_limit_of_the_answer(
    bench: Bench,
) -> None:
    bench.budget(Granted(77))
    await bench.run(say("The answer."))
    assert bench.provider.requests[0].max_output_tokens == 77
    assert bench.steps.reservations == [
        Reservation(
            "scout/turn:1",
            input_tokens=READ,
            most=4096,
            least=64,
            input_nano_usd=READ * 1000,
            thousand_output_nano_usd=2_000_000,
            model_calls=1,
        )
    ]


async def test_a_second_model_reserves_with_what_the_first_one_wasted(bench: Bench) -> None:
    bench.budget(Granted(77))
    await bench.run(*[breaks_off(DOWN)] * 3, say("The answer."), models=("n", "m"))
    first, second = bench.steps.reservations
    amounts: Mapping[str, int] = wasted(3, per_read=10_000)
    assert (first.wasted_tokens, first.wasted_nano_usd) == (0, 0)
    assert (second.wasted_tokens, second.wasted_nano_usd) == tuple(amounts.values())


async def test_a_run_that_waits_for_its_endpoint_holds_only_what_was_wasted(bench: Bench) -> None:
    bench.budget(Granted(77))
    with pytest.raises(Parked):
        await bench.run(breaks_off(EndpointDown(30.0)))
    waste = wasted()
    assert bench.steps.reservations[-1] == Reservation("scout/turn:1", **waste)


async def test_a_refusal_ends_the_agent_and_replay_agrees(bench: Bench) -> None:
    bench.budget(Refused("tokens"))
    answer = await bench.run()
    assert (answer.stopped, answer.limit) == (RunCode.BUDGET_EXCEEDED, "tokens")
    assert bench.usage == Usage()
    assert bench.steps.event_types == ["turn.started", "turn.completed"]
    bench.steps = bench.steps.reopen()
    assert await bench.run() == answer


async def test_a_limit_may_fail_the_run_and_replay_agrees(bench: Bench) -> None:
    bench.budget(Refused("tokens", action=OnExceeded.FAIL))
    for _ in range(2):
        with pytest.raises(RunFailed, match="its tokens") as raised:
            await bench.run()
        assert raised.value.code is RunCode.BUDGET_EXCEEDED
        bench.steps = bench.steps.reopen()


async def test_most_of_the_budget_spent_the_cheaper_model_is_asked_first(bench: Bench) -> None:
    bench.budget(Granted(50, 80))
    await bench.run(say("The answer."), models=("n",), fast=("m",))
    assert [request.model for request in bench.provider.requests] == ["m"]
    assert bench.steps.event_types[1] == "model.routed"
    assert len(bench.steps.reservations) == 2


async def test_and_the_own_one_once_where_there_is_no_cheaper(bench: Bench) -> None:
    bench.budget(Granted(50, 99))
    await bench.run(say("The answer."))
    assert len(bench.steps.reservations) == 1


async def test_a_model_without_a_price_is_passed_over(bench: Bench) -> None:
    bench.budget(Refused("price"), Granted(50))
    await bench.run(say("The answer."), models=("who", "m"))
    assert [request.model for request in bench.provider.requests] == ["m"]
    assert bench.usage == ANSWERED


async def test_no_model_with_a_price_is_a_limit_that_is_reached(bench: Bench) -> None:
    bench.budget(Refused("price"))
    answer = await bench.run(models=("who", "what"))
    assert (answer.stopped, answer.limit) == (RunCode.BUDGET_EXCEEDED, "price")
    assert "budget.exceeded" in bench.steps.event_types
