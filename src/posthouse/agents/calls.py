"""The tool calls of one turn as steps: made at the same time, answered in order."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import TypeAdapter

from posthouse.agents.assignment import Assignment, shown_name
from posthouse.agents.decide import MAX_CALLS
from posthouse.errors import OwnershipLost
from posthouse.events.types import (
    Draft,
    SourceFound,
    ToolCompleted,
    ToolFailed,
    ToolInDoubt,
    head,
)
from posthouse.journal.model import Done, Intent, Opening, Parked, Step, Usage
from posthouse.llm.messages import ToolCall
from posthouse.telemetry import UNKNOWN_TOOL, Metrics
from posthouse.tools.answer import failed
from posthouse.tools.model import (
    Effect,
    InDoubt,
    Resources,
    Tool,
    ToolAnswer,
    ToolContext,
)

ANSWER: TypeAdapter[ToolAnswer] = TypeAdapter(ToolAnswer)

Instead: TypeAlias = Callable[[], Awaitable[Done[ToolAnswer]]]
Opens: TypeAlias = Callable[[Sequence[ToolAnswer]], tuple[Opening, ...]]


class ToolCalls:
    """Makes the calls that an agent's model asks for."""

    def __init__(self, tools: Mapping[str, Tool], resources: Resources, metrics: Metrics) -> None:
        self._tools = tools
        self._resources = resources
        self._metrics = metrics

    async def run(
        self, job: Assignment, turn: int, calls: tuple[ToolCall, ...], opens: Opens
    ) -> list[ToolAnswer]:
        """The answers in the order of the calls; the last call to end announces what they open."""
        finish = _Finish(calls, opens)
        return await _together([self._run(job, turn, call, finish) for call in calls])

    async def _run(
        self, job: Assignment, turn: int, call: ToolCall, finish: "_Finish"
    ) -> ToolAnswer:
        key = job.call_key(turn, call)

        async def work() -> Done[ToolAnswer]:
            started = job.now()
            answer = await self._answer(job, key, call)
            return await done(answer, round((job.now() - started) * 1000))

        async def instead() -> Done[ToolAnswer]:
            return await done(in_doubt(), 0)

        async def done(answer: ToolAnswer, duration_ms: int) -> Done[ToolAnswer]:
            if answer.problem is not None:
                self._metrics.tool_failed(self._label(job, call), answer.problem.error)
            opens = await finish.opens(call.id, answer)
            events = _events(job, key, call, answer, duration_ms)
            return Done(answer, Usage(tool_calls=1), events, opens)

        step = Step(
            key=key,
            work=work,
            result=ANSWER,
            agent=job.name,
            opening=job.call_opening(turn, call),
            intent=self._intent(job, key, call, instead),
        )
        try:
            answer = await job.steps.run(step)
        except BaseException:
            finish.abandon()
            raise
        finish.committed(call.id, answer)
        return answer

    async def _answer(self, job: Assignment, key: str, call: ToolCall) -> ToolAnswer:
        tool = self._tool(job, call)
        if tool is None:
            known = ", ".join(job.agent.spec.tools) or "none"
            message = f"There is no tool named {shown_name(call)!r}. The tools are: {known}."
            return failed("unknown_tool", message)
        context = ToolContext(
            run_id=job.steps.run_id,
            step=key,
            idempotency_key=f"{job.steps.run_id}/{key}",
            resources=self._resources,
        )
        try:
            async with asyncio.timeout(job.remaining()):
                return await tool.call(context, call.arguments)
        except TimeoutError:
            return failed("timeout", "Your time was up before the tool had answered.")

    def _tool(self, job: Assignment, call: ToolCall) -> Tool | None:
        return self._tools.get(call.name) if call.name in job.agent.spec.tools else None

    def _intent(
        self, job: Assignment, key: str, call: ToolCall, instead: Instead
    ) -> Intent[ToolAnswer] | None:
        tool = self._tool(job, call)
        if tool is None or tool.effect is not Effect.WRITE:
            return None
        doubt = job.draft(ToolInDoubt(tool=shown_name(call), call_id=call.id), key)
        return Intent(doubt, instead if tool.in_doubt is InDoubt.FAIL else None)

    def _label(self, job: Assignment, call: ToolCall) -> str:
        known = call.name in job.agent.spec.tools and call.name in self._tools
        return call.name if known else UNKNOWN_TOOL


def in_doubt() -> ToolAnswer:
    """The answer to a writing call that a crash cut and that is not made again."""
    message = (
        "It is not known whether this call took effect: what made it ended before the answer came. "
        "It was not made again. Find out before you ask for it once more."
    )
    return _not_made(failed("in_doubt", message))


def too_many() -> ToolAnswer:
    """The answer to a call that is not made, because its turn has too many."""
    message = f"This call was not made: a turn may have {MAX_CALLS}. Ask again later."
    return _not_made(failed("too_many_calls", message, retryable=True))


def call_blocked() -> ToolAnswer:
    """The answer to a call that is not made any more, because it led in circles."""
    message = (
        "This call was not made: it led nowhere before. Do something else, or write your answer."
    )
    return _not_made(failed("call_blocked", message))


def _not_made(answer: ToolAnswer) -> ToolAnswer:
    return answer.model_copy(update={"trusted": True})


def _events(
    job: Assignment, key: str, call: ToolCall, answer: ToolAnswer, duration_ms: int
) -> tuple[Draft, ...]:
    tool, problem = shown_name(call), answer.problem
    if problem is not None:
        failure = ToolFailed(
            tool=tool,
            call_id=call.id,
            duration_ms=duration_ms,
            error=problem.error,
            message=head(problem.message),
            retryable=problem.retryable,
        )
        return (job.draft(failure, key),)
    completed = ToolCompleted(
        tool=tool,
        call_id=call.id,
        duration_ms=duration_ms,
        result=head(answer.text),
        length=len(answer.text),
    )
    found = [
        job.draft(SourceFound(address=head(source.address), title=head(source.title)), key)
        for source in answer.sources
    ]
    return job.draft(completed, key), *found


class _Finish:
    """Knows which call of a turn ends last, and what all of them were answered then."""

    def __init__(self, calls: Sequence[ToolCall], opens: Opens) -> None:
        self._calls = [call.id for call in calls]
        self._opens = opens
        self._answers: dict[str, ToolAnswer] = {}
        self._working = set(self._calls)
        self._uncommitted = set(self._calls)
        self._alone = asyncio.Event()
        self._abandoned = False

    async def opens(self, call: str, answer: ToolAnswer) -> tuple[Opening, ...]:
        """What the answers open when every other call has ended; returns when all of them are committed.

        So the next turn stands in the log after every answer of this one.
        """
        self._answers[call] = answer
        self._working.discard(call)
        if self._working:
            return ()
        if len(self._uncommitted) > 1:
            await self._alone.wait()
        if self._abandoned:
            return ()
        return self._opens([self._answers[one] for one in self._calls])

    def committed(self, call: str, answer: ToolAnswer) -> None:
        """The call's step is in the journal, by this process or one before it."""
        self._answers[call] = answer
        self._working.discard(call)
        self._uncommitted.discard(call)
        if len(self._uncommitted) <= 1:
            self._alone.set()

    def abandon(self) -> None:
        """A call parked or was lost: the next turn does not follow now."""
        self._abandoned = True
        self._alone.set()


async def _together(branches: list[Coroutine[Any, Any, ToolAnswer]]) -> list[ToolAnswer]:
    """The branches' answers in order.

    Whatever one raises, the others end or park first, and Parked carries every wait; but when this
    worker no longer owns the run, the others are dropped at once.
    """
    ended: list[BaseException] = []

    async def guarded(branch: Awaitable[ToolAnswer]) -> ToolAnswer | None:
        try:
            return await branch
        except (OwnershipLost, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as end:
            ended.append(end)
            return None

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(guarded(branch)) for branch in branches]
    except BaseExceptionGroup as lost:
        raise lost.exceptions[0] from None
    for end in ended:
        if not isinstance(end, Parked):
            raise end
    if ended:
        raise Parked(tuple(w for end in ended if isinstance(end, Parked) for w in end.waits))
    return [answer for task in tasks if (answer := task.result()) is not None]
