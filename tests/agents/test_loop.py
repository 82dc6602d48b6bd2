import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from posthouse.agents.outside import NOTICE, marked, unmarked
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.errors import (
    ConfigurationError,
    ContentRefused,
    Fatal,
    InvalidOutput,
    ModelUnavailable,
    RunCode,
)
from posthouse.events.types import MessageSuperseded, ModelRetrying, ToolFailed
from posthouse.journal.model import Prompt, SourceRead, Usage
from posthouse.llm.messages import AssistantMessage, ToolMessage, UserMessage
from posthouse.testing.provider import call, call_tools, say
from posthouse.tools.model import ToolAnswer, ToolContext

Bench = Any  # the fixture's class lives in conftest

LOOK = call("look", "a")
RULES = f"You look.\n\n{NOTICE}"


async def test_an_answer_in_one_turn(bench: Bench) -> None:
    answer = await bench.run(say("The answer."))
    assert (answer.text, answer.turns, answer.stopped, answer.sources) == (
        "The answer.",
        1,
        None,
        (),
    )
    assert bench.steps.event_types == [
        "turn.started", "model.routed", "message.completed", "turn.completed",
    ]  # fmt: skip
    assert bench.steps.kept.usage == [
        Usage(model_calls=1, input_tokens=10, output_tokens=5, unpriced_calls=1)
    ]
    request = bench.provider.requests[0]
    assert [message.text for message in request.messages] == [RULES, "Topic: posts"]
    assert (request.model, request.temperature) == ("m", 0.1)
    assert [offer.name for offer in request.tools] == ["look"]


async def test_a_tool_call_and_its_answer(bench: Bench) -> None:
    answer = await bench.run(call_tools(LOOK, text="Let me look."), say("Done."))
    assert bench.calls == [("scout/turn:1/tool:look", "a")]
    assert answer.sources == (SourceRead("doc://a", "a", "scout/turn:1/tool:look"),)
    assert bench.provider.requests[1].messages[2:] == (
        AssistantMessage(text="Let me look.", tool_calls=(LOOK,)),
        ToolMessage(call_id="look", text=marked("seen a")),
    )
    assert bench.steps.event_types == [
        "turn.started", "model.routed", "message.completed", "turn.completed",
        "tool.started", "tool.completed", "source.found",
        "turn.started", "model.routed", "message.completed", "turn.completed",
    ]  # fmt: skip
    assert bench.steps.announced_alone == ["scout/turn:1"]
    assert list(bench.steps.kept.journal) == [
        "scout/turn:1",
        "scout/turn:1/tool:look",
        "scout/turn:2",
    ]
    assert {draft.agent for draft in bench.steps.kept.events} == {"scout"}


async def test_calls_run_at_the_same_time_and_are_answered_in_order(bench: Bench) -> None:
    gates = {name: asyncio.Event() for name in "abc"}
    order: list[str] = []

    async def wait(context: ToolContext, arguments: str) -> ToolAnswer:
        order.append(arguments)
        if len(order) == 3:
            gates["c"].set()
        await gates[arguments].wait()
        if arguments != "a":
            gates[chr(ord(arguments) - 1)].set()
        return ToolAnswer(text=arguments)

    bench.tool("wait", wait)
    calls = [call("wait", name, call_id=name) for name in "abc"]
    async with asyncio.timeout(5):
        await bench.run(call_tools(*calls), say("Done."))
    told = [m.text for m in bench.provider.requests[1].messages if isinstance(m, ToolMessage)]
    assert [unmarked(text) for text in told] == ["a", "b", "c"]
    journal = [key[-1] for key in bench.steps.kept.journal if "tool:" in key]
    assert journal == ["c", "b", "a"]
    assert bench.steps.announced_alone == ["scout/turn:1"]
    assert bench.steps.event_types[-6:] == [
        "tool.completed", "tool.completed",
        "turn.started", "model.routed", "message.completed", "turn.completed",
    ]  # fmt: skip


async def test_a_source_that_is_read_twice_is_named_once(bench: Bench) -> None:
    again = call("look", "a", call_id="again")
    other = call("look", "b", call_id="other")
    answer = await bench.run(call_tools(LOOK, again), call_tools(other, again), say("Done."))
    assert [(s.address, s.step) for s in answer.sources] == [
        ("doc://a", "scout/turn:1/tool:look"),
        ("doc://b", "scout/turn:2/tool:other"),
    ]


async def test_an_unknown_tool_is_told_to_the_model(bench: Bench) -> None:
    answer = await bench.run(call_tools(call("fly" * 50, "{}", "f")), say("Then not."))
    assert answer.text == "Then not."
    told = bench.provider.requests[1].messages[-1].text
    assert '"error":"unknown_tool"' in told
    assert "look" in told
    failed = next(d.event for d in bench.steps.kept.events if isinstance(d.event, ToolFailed))
    assert (failed.error, len(failed.tool)) == ("unknown_tool", 64)
    assert bench.counted("tool_call_errors_total", tool="unknown", error_type="unknown_tool") == 1


async def test_a_tool_that_the_agent_may_not_use_is_unknown(bench: Bench) -> None:
    spec = AgentSpec("scout", "Looks.", "scout.v1", tools=())
    bare = Agent(spec, Prompt("scout", 1, "You think."))
    await bench.run(call_tools(LOOK), say("Then not."), agent=bare)
    assert bench.calls == []
    assert bench.provider.requests[0].messages[0].text == "You think."
    assert "The tools are: none" in bench.provider.requests[1].messages[-1].text


async def test_an_agent_whose_tool_is_missing_cannot_start(bench: Bench) -> None:
    spec = AgentSpec("scout", "Looks.", "scout.v1", tools=("hear",))
    with pytest.raises(ConfigurationError, match="hear"):
        await bench.run(say("x"), agent=Agent(spec, Prompt("scout", 1, "You hear.")))


async def test_more_than_sixteen_calls_are_answered_but_not_made(bench: Bench) -> None:
    calls = [call("look", str(n), call_id=f"c{n}") for n in range(18)]
    await bench.run(call_tools(*calls), say("Done."))
    assert len(bench.calls) == 16
    told = bench.provider.requests[1].messages[3:]
    assert [message.call_id for message in told] == [f"c{n}" for n in range(18)]
    assert all("too_many_calls" in message.text for message in told[16:])


async def test_the_last_turn_has_no_tools_and_says_so(bench: Bench) -> None:
    answer = await bench.run(call_tools(LOOK), say("In time."), max_iterations=2)
    assert (answer.text, answer.stopped) == ("In time.", None)
    last = bench.provider.requests[1]
    assert last.tools == ()
    assert isinstance(last.messages[-1], UserMessage)
    assert "last turn" in last.messages[-1].text


async def test_a_model_that_never_stops_is_stopped(bench: Bench) -> None:
    turns = [call_tools(call("look", str(n)), text=f"step {n}" if n < 2 else "") for n in range(3)]
    answer = await bench.run(*turns, max_iterations=3)
    assert (answer.text, answer.stopped, answer.turns) == ("step 1", RunCode.MAX_ITERATIONS, 3)
    assert len(answer.sources) == len(bench.calls) == 2
    assert bench.steps.event_types[-1] == "turn.completed"
    assert bench.counted("agent_iterations_count_sum") == 3


async def test_empty_answers_are_repaired_then_invalid(bench: Bench) -> None:
    answer = await bench.run(say(""), say(" \n"), say("At last."))
    assert answer.text == "At last."
    roles = [message.role for message in bench.provider.requests[2].messages]
    assert roles == ["system", "user", "user", "user"]
    bench.reopen()
    bench.steps.kept.journal.clear()
    with pytest.raises(InvalidOutput):
        await bench.run(say(""), say(""), say(""))


async def test_a_cut_answer_is_kept_when_it_stays_cut(bench: Bench) -> None:
    cut = say("Half an ans", finish_reason="length")
    answer = await bench.run(cut, cut, cut)
    assert (answer.text, answer.stopped) == ("Half an ans", RunCode.INVALID_OUTPUT)


async def test_refused_and_fatal_end_it_at_once(bench: Bench) -> None:
    with pytest.raises(ContentRefused):
        await bench.run(say("no", finish_reason="content_filter"))
    bench.steps.kept.journal.clear()
    with pytest.raises(Fatal):
        await bench.run(Fatal("bad key"))
    assert len(bench.provider.requests) == 1


async def test_a_refusal_is_asked_about_once_and_is_no_partial_text(bench: Bench) -> None:
    no = say("I cannot.", finish_reason="refusal")
    answer = await bench.run(no, say("All but this: done."))
    assert (answer.text, answer.stopped) == ("All but this: done.", None)
    assert "say plainly" in bench.provider.requests[1].messages[-1].text
    bench.steps.kept.journal.clear()
    with pytest.raises(ContentRefused):
        await bench.run(no, call_tools(LOOK), no)
    bench.steps.kept.journal.clear()
    with pytest.raises(InvalidOutput):
        await bench.run(no, say(""), say(""))


async def test_after_every_repair_what_was_found_is_kept(bench: Bench) -> None:
    answer = await bench.run(call_tools(LOOK), say(""), say(""), say(""))
    assert (answer.text, answer.stopped) == ("", RunCode.INVALID_OUTPUT)
    assert len(answer.sources) == 1


async def test_time_that_ran_out_between_turns(bench: Bench) -> None:
    async def slow(context: ToolContext, arguments: str) -> ToolAnswer:
        bench.time += 200
        return ToolAnswer(text="late")

    bench.tool("slow", slow)
    answer = await bench.run(call_tools(call("slow", "{}"), text="Wait."))
    assert (answer.text, answer.stopped, answer.turns) == ("Wait.", RunCode.TIMEOUT, 2)
    assert len(bench.provider.requests) == 1
    assert bench.steps.kept.usage[-1] == Usage()


async def test_a_model_that_hangs_is_cut_and_its_text_is_kept(bench: Bench) -> None:
    async def hang(request: Any, on_text: Any) -> Any:
        on_text("So far")
        await asyncio.Event().wait()

    answer = await bench.run(hang, timeout_seconds=0.05)
    assert (answer.text, answer.stopped) == ("So far", RunCode.TIMEOUT)
    assert [delta.text for _, delta in bench.steps.pushes] == ["So far"]
    assert bench.steps.kept.usage[0].model_calls == 1


async def test_a_tool_that_hangs_is_cut_with_the_agent(bench: Bench) -> None:
    async def hang(context: ToolContext, arguments: str) -> ToolAnswer:
        await asyncio.Event().wait()
        raise AssertionError

    bench.tool("hang", hang)
    await bench.run(call_tools(call("hang", "{}")), say("Enough."), timeout_seconds=0.05)
    assert '"error":"timeout"' in bench.provider.requests[1].messages[-1].text


async def test_each_request_gets_the_time_that_is_left(bench: Bench) -> None:
    async def slow(context: ToolContext, arguments: str) -> ToolAnswer:
        bench.time += 50
        return ToolAnswer(text="late")

    bench.tool("slow", slow)
    await bench.run(call_tools(call("slow", "{}")), say("Done."))
    assert [request.timeout_seconds for request in bench.provider.requests] == [120.0, 70.0]


async def test_a_retry_is_announced_and_voids_what_was_pushed(bench: Bench) -> None:
    down = ModelUnavailable("down", code=RunCode.CONNECTION)

    def breaks(request: Any, on_text: Any) -> Any:
        on_text("x" * 500)
        raise down

    answer = await bench.run(breaks, down, say("Whole."))
    assert answer.text == "Whole."
    events = [draft.event for draft in bench.steps.kept.events]
    retries = [event for event in events if isinstance(event, ModelRetrying)]
    assert [(retry.attempt, retry.code) for retry in retries] == [
        (1, "connection"),
        (2, "connection"),
    ]
    assert sum(isinstance(event, MessageSuperseded) for event in events) == 1
    assert [(delta.offset, delta.text[:1]) for _, delta in bench.steps.pushes] == [
        (0, "x"),
        (0, "W"),
    ]


async def test_a_model_that_stays_away_fails_the_run(bench: Bench) -> None:
    down = ModelUnavailable("down", code=RunCode.CONNECTION)
    with pytest.raises(ModelUnavailable):
        await bench.run(down, down, down)


async def test_a_model_that_is_away_until_the_time_is_up_is_a_timeout(bench: Bench) -> None:
    down = ModelUnavailable("down", code=RunCode.CONNECTION)
    answer = await bench.run(down, down, down, timeout_seconds=3)
    assert answer.stopped is RunCode.TIMEOUT


async def test_tokens_that_nobody_counted_are_estimated(bench: Bench) -> None:
    await bench.run(say("y" * 40, tokens=None))
    usage = bench.steps.kept.usage[0]
    assert usage.output_tokens == 10
    assert usage.input_tokens > 0
    assert bench.steps.kept.events[-1].event.completion_tokens is None


async def test_one_log_line_for_each_call(bench: Bench) -> None:
    with capture_logs() as lines:
        await bench.run(call_tools(LOOK), say("Done."))
    calls = [line for line in lines if line["event"] == "llm_call"]
    assert [line["iteration"] for line in calls] == [1, 2]
    assert calls[0] | {"log_level": "info"} == {
        "event": "llm_call", "log_level": "info", "agent": "scout", "iteration": 1,
        "model": "scripted", "provider": "openai", "latency_ms": 1, "prompt_tokens": 10, "completion_tokens": 5,
        "tokens_estimated": False, "finish_reason": "tool_calls",
    }  # fmt: skip
    assert bench.counted("llm_tokens_total", model="m") == 30


async def test_the_pinned_prompt_is_used(bench: Bench) -> None:
    bench.steps.kept.prompts["scout"] = Prompt("scout", 1, "You looked before.")
    await bench.run(say("Done."))
    assert bench.provider.requests[0].messages[0].text == f"You looked before.\n\n{NOTICE}"
