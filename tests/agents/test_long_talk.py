"""Agents whose conversation is longer than their window: what their model is sent, whatever dies on the way."""

from collections.abc import Callable
from typing import Any

import pytest

from posthouse.agents.conversation import LAST_TURN
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.agents.window import LEFT_OUT, SUMMARISED, Policy, Window
from posthouse.errors import EndpointDown, ModelUnavailable, RunCode
from posthouse.journal.model import Parked, Prompt
from posthouse.llm.estimate import input_tokens
from posthouse.llm.messages import Completion, ModelRequest, ToolMessage
from posthouse.testing.provider import call, call_tools, say
from posthouse.testing.steps import Crash, Crashed
from posthouse.tools.model import Source, ToolAnswer, ToolContext

Bench = Any  # the fixture's class lives in conftest

LIMIT, TURNS = 1500, 12


def agent(bench: Bench, policy: Policy = "trim", limit: int | None = LIMIT) -> Agent:
    spec = AgentSpec(
        "scout", "Looks.", "scout.v1", tools=tuple(bench.tools), window=Window(limit, policy)
    )
    return Agent(spec, Prompt("scout", 1, "You look."))


def equip(bench: Bench) -> None:
    async def look(context: ToolContext, arguments: str) -> ToolAnswer:
        source = Source(address=f"doc://{arguments}", title=arguments)
        return ToolAnswer(text=f"page {arguments} " * 150, sources=(source,))

    bench.tool("look", look)


def asks_for_summary(request: ModelRequest) -> bool:
    return request.messages[-1].text.startswith("This conversation is too long")


def reader(bench: Bench, summary: Callable[[ModelRequest], Completion] | None = None) -> Any:
    """A model that reads a page a turn; which turn it is stands in the journal, not in what it is sent."""

    def answer(request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        if asks_for_summary(request):
            on_text("Pages were read.")
            return summary(request) if summary else say("Pages were read.")
        number = sum("/tool:" in key for key in bench.steps.kept.journal) + 1
        if number == TURNS or not request.tools:
            return say("Done.")
        return call_tools(call("look", str(number), f"c{number}"))

    return answer


def sent(bench: Bench) -> list[ModelRequest]:
    return list(bench.provider.requests)


def summaries(bench: Bench) -> list[str]:
    return [key for key in bench.steps.kept.journal if key.endswith("/summary")]


@pytest.mark.parametrize("policy", ["trim", "summarise"])
async def test_no_request_is_above_the_limit_and_the_agent_still_knows_everything(
    bench: Bench, policy: Policy
) -> None:
    equip(bench)
    answer = await bench.run(*[reader(bench)] * 40, agent=agent(bench, policy), max_iterations=20)
    assert (answer.text, answer.turns, answer.stopped) == ("Done.", TURNS, None)
    assert [source.title for source in answer.sources] == [str(n) for n in range(1, TURNS)]
    assert all(input_tokens(request) <= LIMIT for request in sent(bench))
    last = sent(bench)[-1].messages
    assert [message.text for message in last[:2]] == [sent(bench)[0].messages[0].text, bench.task]
    assert f"c{TURNS - 1}" in [m.call_id for m in last if isinstance(m, ToolMessage)]
    assert bool(summaries(bench)) == (policy == "summarise")
    if policy == "trim":
        assert last[2].text == LEFT_OUT


async def test_without_a_limit_everything_is_sent(bench: Bench) -> None:
    equip(bench)
    await bench.run(*[reader(bench)] * 40, agent=agent(bench, limit=None), max_iterations=20)
    for before, after in zip(sent(bench), sent(bench)[1:], strict=False):
        assert after.messages[: len(before.messages)] == before.messages
    assert len(sent(bench)[-1].messages) == 2 + 2 * (TURNS - 1)


async def test_the_last_turn_has_room_for_its_notice(bench: Bench) -> None:
    equip(bench)
    await bench.run(*[reader(bench)] * 40, agent=agent(bench), max_iterations=8)
    assert sent(bench)[-1].messages[-1].text == LAST_TURN
    assert all(input_tokens(request) <= LIMIT for request in sent(bench))


@pytest.mark.parametrize("policy", ["trim", "summarise"])
async def test_after_a_crash_anywhere_the_same_is_sent(bench: Bench, policy: Policy) -> None:
    equip(bench)
    whole = type(bench)()
    equip(whole)
    await whole.run(*[reader(whole)] * 40, agent=agent(whole, policy), max_iterations=20)
    expected = [request.messages for request in sent(whole)]
    commits = len(whole.steps.kept.journal)
    for commit in range(1, commits + 1):
        one = type(bench)()
        equip(one)
        one.crashing(Crash(commit, "after"))
        with pytest.raises(Crashed):
            await one.run(*[reader(one)] * 40, agent=agent(one, policy), max_iterations=20)
        before = sent(one)
        one.reopen()
        answer = await one.run(*[reader(one)] * 40, agent=agent(one, policy), max_iterations=20)
        assert answer.text == "Done."
        assert [request.messages for request in (*before, *sent(one))] == expected
        assert summaries(one) == summaries(whole)


async def test_a_summary_is_made_once_and_costs_what_it_costs(bench: Bench) -> None:
    equip(bench)
    await bench.run(*[reader(bench)] * 40, agent=agent(bench, "summarise"), max_iterations=20)
    asked = [request for request in sent(bench) if asks_for_summary(request)]
    assert len(asked) == len(summaries(bench)) > 1
    assert all(not request.tools for request in asked)
    read = [
        [m.call_id for m in request.messages if isinstance(m, ToolMessage)] for request in asked
    ]
    everything = [call_id for one in read for call_id in one]
    assert len(everything) == len(set(everything))
    for request in asked[1:]:
        assert request.messages[2].text.startswith(SUMMARISED)
    assert sum(usage.model_calls for usage in bench.steps.kept.usage) == TURNS + len(asked)
    assert all(not step.endswith("/summary") for step, _ in bench.steps.pushes)
    keys = list(bench.steps.kept.journal)
    for key in summaries(bench):
        assert keys[keys.index(key) + 1] == key.removesuffix("/summary")
    bench.reopen()
    bench.script()
    replayed = await bench.run(agent=agent(bench, "summarise"), max_iterations=20)
    assert (replayed.text, bench.steps.worked) == ("Done.", [])


def refuse(request: ModelRequest) -> Completion:
    return say("", finish_reason="refusal")


def be_away(request: ModelRequest) -> Completion:
    raise ModelUnavailable("down", code=RunCode.CONNECTION)


@pytest.mark.parametrize("fails", [refuse, be_away, lambda request: say(" \n")])
async def test_without_a_summary_the_turns_are_left_out(bench: Bench, fails: Any) -> None:
    equip(bench)
    model = reader(bench, fails)
    window = agent(bench, "summarise")
    answer = await bench.run(*[model] * 60, agent=window, max_iterations=20, timeout_seconds=9999)
    assert answer.text == "Done."
    assert summaries(bench)
    assert "message.superseded" not in bench.steps.event_types
    ends = [request.messages for request in sent(bench) if not asks_for_summary(request)]
    assert LEFT_OUT in [message.text for message in ends[-1]]
    assert all(input_tokens(request) <= LIMIT for request in sent(bench))
    bench.reopen()
    bench.script()
    assert await bench.run(agent=window, max_iterations=20, timeout_seconds=9999) == answer
    assert sent(bench) == []


async def test_a_summary_waits_for_an_endpoint_without_a_worker(bench: Bench) -> None:
    def down(request: ModelRequest) -> Completion:
        raise EndpointDown(3.0)

    equip(bench)
    with pytest.raises(Parked) as parked:
        await bench.run(
            *[reader(bench, down)] * 40, agent=agent(bench, "summarise"), max_iterations=20
        )
    [wait] = parked.value.waits
    assert (wait.kind, wait.after_ms) == ("model", 3000)
    assert wait.key.endswith("/summary")
    assert summaries(bench) == []
    bench.reopen()
    answer = await bench.run(
        *[reader(bench)] * 40, agent=agent(bench, "summarise"), max_iterations=20
    )
    assert answer.text == "Done."


async def test_going_in_circles_is_seen_in_a_narrow_window(bench: Bench) -> None:
    async def same(context: ToolContext, arguments: str) -> ToolAnswer:
        return ToolAnswer(text="the same page " * 400)

    def model(request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        return call_tools(call("look", "a")) if request.tools else say("Nothing new.")

    bench.tool("look", same)
    answer = await bench.run(*[model] * 20, agent=agent(bench), max_iterations=20)
    assert (answer.text, answer.stopped) == ("Nothing new.", RunCode.LOOP_DETECTED)
    assert all(input_tokens(request) <= LIMIT for request in sent(bench))
