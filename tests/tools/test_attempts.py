"""Further tries, and places for calls at the same time."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from posthouse.tools.answer import failed
from posthouse.tools.attempts import LONGEST_PAUSE_SECONDS, limited, with_retries
from posthouse.tools.define import tool
from posthouse.tools.model import ToolAnswer, ToolContext


def answering(*answers: ToolAnswer) -> tuple[Callable[[], Awaitable[ToolAnswer]], list[ToolAnswer]]:
    left = list(answers)

    async def attempt() -> ToolAnswer:
        return left.pop(0)

    return attempt, left


BUSY = failed("http_error", "busy", retryable=True)
GONE = failed("not_found", "gone")
GOOD = ToolAnswer(text="good")


@pytest.mark.parametrize(
    ("answers", "retries", "given", "pauses"),
    [
        ([GOOD], 3, GOOD, 0),
        ([BUSY, GOOD], 3, GOOD, 1),
        ([BUSY, GONE], 3, GONE, 1),
        ([BUSY, BUSY, BUSY], 2, BUSY, 2),
        ([BUSY], 0, BUSY, 0),
        ([BUSY] * 10, 9, BUSY, 9),
    ],
)
async def test_only_what_may_pass_is_tried_again_and_at_most_so_often(
    answers: list[ToolAnswer], retries: int, given: ToolAnswer, pauses: int
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    attempt, left = answering(*answers)
    assert await with_retries(attempt, retries, sleep=sleep) == given
    assert left == []
    assert len(slept) == pauses
    assert all(0 <= pause <= LONGEST_PAUSE_SECONDS for pause in slept)
    assert slept[:1] <= [0.2]


async def test_only_so_many_calls_run_at_once_and_waiting_costs_a_tool_none_of_its_time(
    context: ToolContext,
) -> None:
    running, most, gate, two = 0, 0, asyncio.Event(), asyncio.Event()

    @tool(concurrency=2, timeout_seconds=0.2)
    async def narrow() -> str:
        """Takes its time."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            two.set()
        try:
            await gate.wait()
        finally:
            running -= 1
        return "done"

    ours = limited([narrow])["narrow"]
    async with asyncio.timeout(5):
        calls = [asyncio.create_task(ours.call(context, "{}")) for _ in range(6)]
        await two.wait()
        first = [json.loads((await call).text)["error"] for call in calls[:2]]
        assert first == ["timeout", "timeout"]
        gate.set()
        assert [(await call).text for call in calls[2:]] == ["done"] * 4
    assert most == 2


async def test_a_call_that_is_dropped_gives_its_place_back(context: ToolContext) -> None:
    begun = asyncio.Event()

    @tool(concurrency=1)
    async def narrow(word: str) -> str:
        """Waits for the first word.

        :param word: What to say.
        """
        if word == "wait":
            begun.set()
            await asyncio.Event().wait()
        return word

    ours = limited([narrow])["narrow"]
    async with asyncio.timeout(5):
        held = asyncio.create_task(ours.call(context, '{"word": "wait"}'))
        await begun.wait()
        waiting = asyncio.create_task(ours.call(context, '{"word": "go"}'))
        held.cancel()
        assert (await waiting).text == "go"


async def test_a_tool_without_a_limit_and_another_process_have_their_own_places() -> None:
    @tool
    async def wide() -> str:
        """Says."""
        return ""

    @tool(concurrency=1)
    async def narrow() -> str:
        """Says."""
        return ""

    assert limited([wide]) == {"wide": wide}
    here, there = limited([narrow])["narrow"], limited([narrow])["narrow"]
    assert here.call is not there.call is not narrow.call
