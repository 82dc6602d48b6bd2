"""Models that go in circles: each ends within its bound, with what it found, whatever dies on the way."""

from collections.abc import Callable
from typing import Any

import pytest

from posthouse.agents.decide import MAX_REPAIRS
from posthouse.agents.stall import TURNS_WITHOUT_PROGRESS, TURNS_WITHOUT_SOURCES
from posthouse.errors import InvalidOutput, RunCode
from posthouse.events.types import StallDetected
from posthouse.llm.messages import AssistantMessage, Completion, ModelRequest, ToolCall, UserMessage
from posthouse.testing.provider import call, call_tools, say
from posthouse.testing.steps import Crash, Crashed
from posthouse.tools.answer import failed
from posthouse.tools.model import Effect, Source, ToolAnswer, ToolContext

Bench = Any  # the fixture's class lives in conftest
Asked = Callable[[int], list[ToolCall]]

REPORT = "What was found so far."
NUDGED, BLOCKED, STOPPED = "nudged", "blocked", "stopped"


def turn_of(request: ModelRequest) -> int:
    return sum(isinstance(message, AssistantMessage) for message in request.messages) + 1


def looping(asked: Asked) -> Callable[..., Completion]:
    """A model that asks for this and never listens; without tools it writes its report."""

    def answer(request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        if not request.tools:
            on_text(REPORT)
            return say(REPORT)
        return call_tools(*asked(turn_of(request)))

    return answer


def same(turn: int) -> list[ToolCall]:
    return [call("look", "a")]


def same_otherwise_written(turn: int) -> list[ToolCall]:
    return [call("echo", '{"a": 1,"b":2}' if turn % 2 else '{"b":2, "a":1}')]


def ping_pong(turn: int) -> list[ToolCall]:
    return [call("look", "ab"[turn % 2])]


def three_cycle(turn: int) -> list[ToolCall]:
    return [call("look", "abc"[turn % 3])]


def always_failing(turn: int) -> list[ToolCall]:
    return [call("fail", str(turn)), call("fly", "{}")]


def new_words(turn: int) -> list[ToolCall]:
    return [call("echo", str(turn))]


def known_pages(turn: int) -> list[ToolCall]:
    return [call("page", str(turn))]


def mistakes(turn: int) -> list[ToolCall]:
    if turn == 1:
        return [call("look", "a")]
    return [call("fly", "{}")] if turn % 2 else [call("strict", "{"), call("strict", "[", "b")]


# The turns that are fresh before the circle closes.
KINDS: dict[str, tuple[Asked, int, str]] = {
    "the same call": (same, 1, "repeated_call"),
    "the same call, otherwise written": (same_otherwise_written, 1, "repeated_call"),
    "two calls in turn": (ping_pong, 2, "alternating_calls"),
    "three calls in turn": (three_cycle, 3, "alternating_calls"),
    "calls that fail": (always_failing, 0, "failing_calls"),
    "new words, same results": (new_words, 1, "repeated_results"),
}


def equip(bench: Bench) -> None:
    async def fail(context: ToolContext, arguments: str) -> ToolAnswer:
        return failed("http_error", f"no {arguments}")

    async def strict(context: ToolContext, arguments: str) -> ToolAnswer:
        return failed("invalid_arguments", f"{arguments} is no JSON")

    async def echo(context: ToolContext, arguments: str) -> ToolAnswer:
        return ToolAnswer(text="always this")

    async def page(context: ToolContext, arguments: str) -> ToolAnswer:
        source = Source(address="doc://one", title="One")
        return ToolAnswer(text=f"the time is {arguments}", sources=(source,))

    for tool in (fail, strict, echo, page):
        bench.tool(tool.__name__, tool)


def stalls(bench: Bench) -> list[tuple[str, str, str]]:
    drafts = [(d.step, d.event) for d in bench.steps.kept.events]
    return [(step, e.pattern, e.action) for step, e in drafts if isinstance(e, StallDetected)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_looping_model_ends_within_the_bound_with_its_report(
    bench: Bench, kind: str
) -> None:
    asked, fresh, pattern = KINDS[kind]
    equip(bench)
    answer = await bench.run(*[looping(asked)] * 40, max_iterations=40)
    assert (answer.text, answer.stopped) == (REPORT, RunCode.LOOP_DETECTED)
    assert answer.turns <= fresh + TURNS_WITHOUT_PROGRESS
    assert answer.turns == len(bench.provider.requests)
    assert [(p, action) for _, p, action in stalls(bench)] == [
        (pattern, NUDGED), (pattern, BLOCKED), (pattern, STOPPED),
    ]  # fmt: skip
    assert len(answer.sources) == (fresh if asked in (same, ping_pong, three_cycle) else 0)
    assert bench.counted("agent_iterations_count_sum") == answer.turns


async def test_pages_that_were_all_read_before(bench: Bench) -> None:
    equip(bench)
    answer = await bench.run(*[looping(known_pages)] * 40, max_iterations=40)
    assert (answer.text, answer.stopped) == (REPORT, RunCode.LOOP_DETECTED)
    assert answer.turns == 1 + TURNS_WITHOUT_SOURCES
    assert [p for _, p, _ in stalls(bench)] == ["no_new_sources"] * 3
    assert len(answer.sources) == 1


async def test_each_rung_is_told_after_the_answers_and_before_the_next_turn(bench: Bench) -> None:
    await bench.run(*[looping(same)] * 9, max_iterations=9)
    assert [step for step, _, _ in stalls(bench)] == [f"scout/turn:{n}/stall" for n in (3, 4, 5)]
    assert bench.steps.event_types[-15:] == [
        "turn.started", "model.routed", "turn.completed",
        "tool.started", "tool.completed", "source.found", "stall.detected",
        "turn.started", "model.routed", "turn.completed", "stall.detected",
        "turn.started", "model.routed", "message.completed", "turn.completed",
    ]  # fmt: skip
    nudge, block, stop = (request.messages[-1] for request in bench.provider.requests[3:])
    assert all(isinstance(message, UserMessage) for message in (nudge, block, stop))
    assert "look again and again" in nudge.text
    assert "not made any more" in block.text
    assert "last turn" in stop.text
    assert bench.provider.requests[5].tools == ()


async def test_a_model_that_ignores_the_block_makes_no_call_and_goes_up(bench: Bench) -> None:
    def all_together(turn: int) -> list[ToolCall]:
        return [call("look", "a", "x"), call("look", "a", "y")]

    answer = await bench.run(*[looping(all_together)] * 40, max_iterations=40)
    assert (answer.turns, answer.stopped) == (6, RunCode.LOOP_DETECTED)
    assert len(bench.calls) == 8
    told = bench.provider.requests[-1].messages[-3:-1]
    assert all('"error":"call_blocked"' in message.text for message in told)
    assert not any(key.startswith("scout/turn:5/tool") for key in bench.steps.kept.journal)


async def test_a_blocked_call_is_answered_among_the_others(bench: Bench) -> None:
    def obstinate(turn: int) -> list[ToolCall]:
        rest = [call("look", f"new {turn}", "z")] if turn > 4 else []
        return [call("look", "a"), *rest]

    answer = await bench.run(*[looping(obstinate)] * 9, max_iterations=9)
    assert answer.stopped is None  # it does get on, and its last turn is its answer
    told = bench.provider.requests[5].messages[-2:]
    assert [message.call_id for message in told] == ["look", "z"]
    assert ["call_blocked" in message.text for message in told] == [True, False]
    assert [action for _, _, action in stalls(bench)] == [NUDGED, BLOCKED]


async def test_progress_leads_down_the_ladder_one_rung_a_turn(bench: Bench) -> None:
    plan = ["a", "a", "a", "b", "a", "c", "d", "e"]

    def better(turn: int) -> list[ToolCall]:
        return [call("look", plan[turn - 1])]

    answer = await bench.run(*[looping(better)] * 9, max_iterations=9)
    assert answer.stopped is None
    assert [action for _, _, action in stalls(bench)] == [NUDGED, NUDGED]


async def test_a_tool_that_writes_may_say_the_same_each_time(bench: Bench) -> None:
    async def save(context: ToolContext, arguments: str) -> ToolAnswer:
        return ToolAnswer(text="saved", trusted=True)

    bench.tool("save", save, Effect.WRITE)
    answer = await bench.run(
        *[looping(lambda turn: [call("save", str(turn))])] * 12, max_iterations=12
    )
    assert (answer.stopped, stalls(bench)) == (None, [])


async def test_the_turn_limit_still_holds(bench: Bench) -> None:
    answer = await bench.run(*[looping(same)] * 5, max_iterations=5)
    assert (answer.text, answer.stopped, answer.turns) == (REPORT, None, 5)
    assert [action for _, _, action in stalls(bench)] == [NUDGED, BLOCKED]


async def test_whatever_the_last_turn_brings_the_loop_is_the_reason(bench: Bench) -> None:
    loop = looping(same)
    for last in (call_tools(*same(6)), say("no", finish_reason="refusal"), say("")):
        bench.steps.kept.journal.clear()
        answer = await bench.run(*[loop] * 5, last, max_iterations=9)
        assert (answer.text, answer.stopped) == ("", RunCode.LOOP_DETECTED)
        assert len(answer.sources) == 1


async def test_turns_of_mistakes_are_repairs_and_end_with_what_there_is(bench: Bench) -> None:
    equip(bench)
    answer = await bench.run(*[looping(mistakes)] * 9, max_iterations=9)
    assert (answer.text, answer.stopped) == (REPORT, RunCode.INVALID_OUTPUT)
    assert answer.turns == 1 + MAX_REPAIRS + 1 + 1
    assert stalls(bench) == []
    last = bench.provider.requests[-1]
    assert last.tools == ()
    assert "as you wrote them" in last.messages[-1].text


async def test_mistakes_and_nothing_else_are_an_invalid_output(bench: Bench) -> None:
    fly = call_tools(call("fly", "{}"))
    with pytest.raises(InvalidOutput):
        await bench.run(fly, fly, fly, say(""))


async def test_a_good_turn_gives_the_repairs_back(bench: Bench) -> None:
    fly = call_tools(call("fly", "{}"))
    half = call_tools(call("fly", "{}"), call("look", "a"))
    answer = await bench.run(fly, say(""), half, fly, fly, say("Done."))
    assert (answer.text, answer.stopped) == ("Done.", None)


CRASHES = [*KINDS, "mistakes"]


@pytest.mark.parametrize("kind", CRASHES)
async def test_a_crash_at_any_step_neither_repeats_nor_loses_a_rung(
    bench: Bench, kind: str
) -> None:
    equip(bench)
    model = looping(mistakes if kind == "mistakes" else KINDS[kind][0])
    expected = await bench.run(*[model] * 20, max_iterations=20)
    drafts = bench.steps.kept.events
    steps = list(bench.steps.kept.journal)
    for commit in range(1, len(steps) + 1):
        for when in ("before", "after"):
            fresh = type(bench)()
            equip(fresh)
            fresh.crashing(Crash(commit, when))
            with pytest.raises(Crashed):
                await fresh.run(*[model] * 20, max_iterations=20)
            fresh.reopen()
            assert await fresh.run(*[model] * 20, max_iterations=20) == expected
            kept = [d for d in fresh.steps.kept.events if d.event.type != "message.superseded"]
            assert sorted(map(repr, kept)) == sorted(map(repr, drafts))
            assert sorted(fresh.steps.kept.journal) == sorted(steps)
            assert stalls(fresh) == stalls(bench)
            fresh.reopen()
            fresh.script()
            assert await fresh.run(max_iterations=20) == expected
            assert fresh.steps.worked == []
