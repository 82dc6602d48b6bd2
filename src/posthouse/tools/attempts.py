"""Further tries of a tool call that failed in a passing way, and places for calls at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_result,
    stop_after_attempt,
    wait_random_exponential,
)

from posthouse import clock
from posthouse.tools.model import Tool, ToolAnswer, ToolContext

LONGEST_PAUSE_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 0.2


async def with_retries(
    attempt: Callable[[], Awaitable[ToolAnswer]],
    retries: int,
    *,
    sleep: Callable[[float], Awaitable[None]] = clock.sleep,
) -> ToolAnswer:
    """The first answer whose problem does not pass by itself, else that of the last try.

    The pause before the first further try is at most 0.2 s; each next one may be twice as long.
    """
    if not retries:
        return await attempt()
    tries = AsyncRetrying(
        retry=retry_if_result(_may_pass),
        stop=stop_after_attempt(1 + retries),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
        sleep=sleep,
        retry_error_callback=_last_answer,
    )
    return await tries(attempt)


def limited(tools: Iterable[Tool]) -> dict[str, Tool]:
    """The tools by name, as one worker process may use them: each with places for its calls.

    A call waits for a place without using up its own time; the agent's time goes on.
    """
    return {tool.name: _with_places(tool) for tool in tools}


def _with_places(tool: Tool) -> Tool:
    if tool.concurrency is None:
        return tool
    places = asyncio.Semaphore(tool.concurrency)

    async def call(context: ToolContext, text: str) -> ToolAnswer:
        async with places:
            return await tool.call(context, text)

    return replace(tool, call=call)


def _may_pass(answer: ToolAnswer) -> bool:
    return answer.problem is not None and answer.problem.retryable


def _last_answer(state: RetryCallState) -> ToolAnswer:
    assert state.outcome is not None
    answer: ToolAnswer = state.outcome.result()
    return answer
