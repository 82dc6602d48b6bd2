import asyncio
from typing import Any

import pytest

from posthouse.errors import LimitReached, OwnershipLost
from posthouse.journal.model import Parked, Step, Wait
from posthouse.testing.provider import Line, call, call_tools, say
from posthouse.testing.steps import Crash, Crashed, MemorySteps
from posthouse.tools.model import ToolAnswer, ToolContext

Bench = Any  # the fixture's class lives in conftest

SCRIPT: list[Line] = [
    call_tools(call("look", "a", "a"), call("look", "b", "b"), text="First."),
    say(""),
    call_tools(call("look", "c", "c"), call("fly", "d", "d")),
    say("Done."),
]
COMMITS = 8


async def _line(request: Any, on_text: Any) -> Any:
    """The line that fits the conversation, so that a repeated request gets the same answer."""
    said = sum(message.role != "tool" for message in request.messages) - 2
    line = SCRIPT[said]
    on_text(line.text)  # type: ignore[union-attr]
    return line


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("commit", range(1, COMMITS + 1))
async def test_a_crash_anywhere_repeats_only_what_was_in_flight(
    bench: Bench, commit: int, when: Any
) -> None:
    bench.script(*[_line] * 20)
    bench.crashing(Crash(commit, when))
    with pytest.raises(Crashed):
        await bench.run()
    committed = set(bench.steps.kept.journal)
    made = list(bench.calls)
    bench.reopen()
    answer = await bench.run()
    assert (answer.text, answer.turns) == ("Done.", 4)
    assert [source.address for source in answer.sources] == ["doc://a", "doc://b", "doc://c"]
    assert committed.isdisjoint(bench.steps.worked)
    again = [step for step, _ in bench.calls[len(made) :]]
    assert committed.isdisjoint(again)
    kinds = [kind for kind in bench.steps.event_types if kind != "message.superseded"]
    assert kinds.count("turn.started") == kinds.count("turn.completed") == 4
    assert kinds.count("tool.started") == 4
    assert kinds.count("tool.completed") == 3
    assert kinds.count("tool.failed") == 1
    assert len(bench.steps.kept.usage) == COMMITS


async def test_replay_of_a_finished_agent_does_nothing(bench: Bench) -> None:
    bench.script(*[_line] * 4)
    first = await bench.run()
    events, made = list(bench.steps.kept.events), list(bench.calls)
    bench.reopen()
    bench.time += 10_000
    bench.script()
    assert await bench.run() == first
    assert (bench.steps.kept.events, bench.calls, bench.steps.worked) == (events, made, [])
    assert bench.counted("agent_iterations_count_count") == 1


async def test_restarts_count_towards_the_time(bench: Bench) -> None:
    bench.script(*[_line] * 4)
    bench.crashing(Crash(1, "after"))
    with pytest.raises(Crashed):
        await bench.run()
    bench.time += 500
    bench.reopen()
    answer = await bench.run()
    assert (answer.stopped, answer.text, answer.turns) == ("timeout", "First.", 2)
    bench.reopen()
    assert await bench.run() == answer


async def test_text_that_a_crash_cut_is_superseded(bench: Bench) -> None:
    bench.crashing(Crash(1, "before"))
    with pytest.raises(Crashed):
        await bench.run(say("Half."))
    bench.reopen()
    await bench.run(say("Whole."))
    assert bench.steps.event_types == [
        "turn.started", "message.superseded", "model.routed", "message.completed", "turn.completed",
    ]  # fmt: skip


async def test_another_task_under_the_same_key_is_noticed(bench: Bench) -> None:
    await bench.run(say("Done."))
    bench.reopen()
    bench.task = "Topic: something else"
    with pytest.raises(AssertionError, match="something else before"):
        await bench.run(say("Done."))


class Interrupted(MemorySteps):
    """Raises instead of running the steps of some calls."""

    failures: dict[str, BaseException]

    async def run(self, step: Step[Any]) -> Any:
        for end, failure in self.failures.items():
            if step.key.endswith(end):
                raise failure
        return await super().run(step)


async def test_parked_calls_let_the_others_finish_and_carry_every_wait(bench: Bench) -> None:
    bench.steps = Interrupted(now=bench.now)
    bench.steps.failures = {
        f"tool:{name}": Parked((Wait(name, "version", None),)) for name in ("a", "c")
    }
    calls = [call("look", name, name) for name in "abc"]
    with pytest.raises(Parked) as caught:
        await bench.run(call_tools(*calls))
    assert [wait.key for wait in caught.value.waits] == ["a", "c"]
    assert bench.calls == [("scout/turn:1/tool:b", "b")]
    assert "scout/turn:2" not in bench.steps.kept.starts


async def test_a_call_that_fails_its_run_lets_the_others_be_recorded(bench: Bench) -> None:
    bench.steps = Interrupted(now=bench.now)
    bench.steps.failures = {"tool:a": LimitReached("no more steps")}
    with pytest.raises(LimitReached):
        await bench.run(call_tools(call("look", "a", "a"), call("look", "b", "b")))
    assert list(bench.steps.kept.journal) == ["scout/turn:1", "scout/turn:1/tool:b"]
    assert "scout/turn:2" not in bench.steps.kept.starts


async def test_lost_ownership_drops_the_calls_in_flight(bench: Bench) -> None:
    dropped = asyncio.Event()

    async def hang(context: ToolContext, arguments: str) -> ToolAnswer:
        try:
            await asyncio.Event().wait()
        finally:
            dropped.set()
        raise AssertionError

    bench.tool("hang", hang)
    bench.steps = Interrupted(now=bench.now)
    bench.steps.failures = {"tool:b": OwnershipLost()}
    async with asyncio.timeout(5):
        with pytest.raises(OwnershipLost):
            await bench.run(call_tools(call("hang", "a", "a"), call("look", "b", "b")))
    assert dropped.is_set() or bench.calls == []


async def test_a_cancelled_agent_stops_its_calls(bench: Bench) -> None:
    begun, dropped = asyncio.Event(), asyncio.Event()

    async def hang(context: ToolContext, arguments: str) -> ToolAnswer:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            dropped.set()
        raise AssertionError

    bench.tool("hang", hang)
    task = asyncio.create_task(bench.run(call_tools(call("hang", "a", "a"))))
    async with asyncio.timeout(5):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert dropped.is_set()
    assert list(bench.steps.kept.journal) == ["scout/turn:1"]


async def test_turns_from_before_the_ladder_are_replayed_without_it(bench: Bench) -> None:
    async def same(context: ToolContext, arguments: str) -> ToolAnswer:
        return ToolAnswer(text="the same")

    bench.tool("look", same)
    bench.script(*[call_tools(call("look", "a"))] * 4, say("Done."))
    bench.crashing(Crash(4, "after"))
    with pytest.raises(Crashed):
        await bench.run()
    bench.reopen()
    kept = bench.steps.kept
    for key, record in kept.journal.items():
        plain = record.value.replace(b'"rules":1', b'"rules":0')
        kept.journal[key] = record.model_copy(update={"value": plain})
    before = len(kept.events)
    bench.script(*[call_tools(call("look", "a"))] * 2, say("Done."))
    answer = await bench.run()
    assert (answer.text, answer.stopped) == ("Done.", None)
    assert "stall.detected" not in bench.steps.event_types[:before]
