"""The tool calls of one turn as steps: made at the same time, answered in order."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, assert_never

from pydantic import TypeAdapter

from posthouse.agents.approval import (
    Approvals,
    Instead,
    Permitted,
    problem_with,
    said_by,
    waits_for_a_person,
)
from posthouse.agents.assignment import Assignment, shown_name
from posthouse.agents.conversation import is_refused
from posthouse.agents.decide import MAX_CALLS
from posthouse.agents.spending import tool_refused
from posthouse.errors import OwnershipLost
from posthouse.events.types import (
    Draft,
    SourceFound,
    ToolCompleted,
    ToolFailed,
    ToolInDoubt,
    head,
)
from posthouse.inputs.model import Decision
from posthouse.journal.model import Done, Intent, Opening, Parked, Step, Usage
from posthouse.llm.messages import ToolCall
from posthouse.telemetry import UNKNOWN_TOOL, Metrics
from posthouse.tools.answer import failed, mistaken
from posthouse.tools.model import (
    Effect,
    InDoubt,
    Resources,
    Tool,
    ToolAnswer,
    ToolContext,
)

ANSWER: TypeAdapter[ToolAnswer] = TypeAdapter(ToolAnswer)

Ends: TypeAlias = Callable[[ToolAnswer], Awaitable[Done[ToolAnswer]]]
Opens: TypeAlias = Callable[[Sequence[ToolAnswer]], tuple[Opening, ...]]


@dataclass(frozen=True)
class Asked:
    """What a turn asks for: its calls, the ids of those that wait for a person, whether its agent has read
    text from outside, and the ids of those that are not made as their arguments were not right."""

    turn: int
    calls: tuple[ToolCall, ...]
    first: tuple[str, ...] = ()
    outside: bool = False
    unfit: tuple[str, ...] = ()


class ToolCalls:
    """Makes the calls that an agent's model asks for."""

    def __init__(
        self,
        tools: Mapping[str, Tool],
        resources: Resources,
        metrics: Metrics,
        approvals: Approvals,
    ) -> None:
        self._tools = tools
        self._resources = resources
        self._metrics = metrics
        self._approvals = approvals

    async def run(self, job: Assignment, asked: Asked, opens: Opens) -> list[ToolAnswer]:
        """The answers in the order of the calls; the last call to end announces what they open."""
        finish = _Finish(asked.calls, opens)
        return await _together([self._run(job, asked, call, finish) for call in asked.calls])

    async def _run(
        self, job: Assignment, asked: Asked, call: ToolCall, finish: "_Finish"
    ) -> ToolAnswer:
        one = _Call(job, asked.turn, job.call_key(asked.turn, call), call, finish)
        try:
            answer = await job.steps.run(await self._step(one, asked))
        except BaseException:
            finish.abandon()
            raise
        finish.committed(call.id, answer)
        return answer

    async def _step(self, one: "_Call", asked: Asked) -> Step[ToolAnswer]:
        tool = self._tool(one.job, one.call)
        if tool is not None and one.call.id in asked.first:
            permission = await self._approvals.permission(
                one.job, one.key, one.call, tool, outside=asked.outside
            )
            match permission:
                case Instead(answer):
                    return self._answered(one, answer)
                case Permitted(call, note):
                    one = replace(one, call=call, note=note)
                case never:
                    assert_never(never)
        elif tool is not None and waits_for_a_person(tool, outside=asked.outside):
            # The turn has found out that nobody need be asked: no person could make sense of it.
            problem = problem_with(tool, one.call)
            if problem is None and one.call.id in asked.unfit:
                problem = unfit()  # a deploy has changed what the tool takes
            return self._made(one, problem)
        return self._made(one)

    def _answered(self, one: "_Call", answer: ToolAnswer) -> Step[ToolAnswer]:
        """The step of a call that is not made: a person has answered in its place."""

        async def work() -> Done[ToolAnswer]:
            return await self._done(one, answer, Usage(), 0)

        return Step(one.key, work, ANSWER, agent=one.job.name)

    def _made(self, one: "_Call", problem: ToolAnswer | None = None) -> Step[ToolAnswer]:
        """The step of a call that is made, unless there is a problem with it."""
        job, called = one.job, Usage(tool_calls=1)

        async def work() -> Done[ToolAnswer]:
            started = job.now()
            answer = problem or await tool_refused(job, one.key) or await self._answer(one)
            took_ms = round((job.now() - started) * 1000)
            return await self._done(one, answer, called, took_ms)

        async def ends(answer: ToolAnswer) -> Done[ToolAnswer]:
            return await self._done(one, answer, called, 0)

        return Step(
            key=one.key,
            work=work,
            result=ANSWER,
            agent=job.name,
            opening=job.call_opening(one.turn, one.call),
            intent=None if problem else self._intent(one, one.key, ends),
        )

    async def _done(
        self, one: "_Call", answer: ToolAnswer, usage: Usage, took_ms: int
    ) -> Done[ToolAnswer]:
        if answer.problem is not None:
            self._metrics.tool_failed(self._label(one.job, one.call), answer.problem.error)
        if is_refused(answer):
            usage = Usage()
        opens = await one.finish.opens(one.call.id, answer)
        events = _events(one.job, one.key, one.call, answer, took_ms)
        return Done(answer, usage, events, opens)

    async def _answer(self, one: "_Call") -> ToolAnswer:
        job, call = one.job, one.call
        tool = self._tool(job, call)
        if tool is None:
            known = ", ".join(job.agent.spec.tools) or "none"
            message = f"There is no tool named {shown_name(call)!r}. The tools are: {known}."
            return mistaken("unknown_tool", message)
        context = ToolContext(
            run_id=job.steps.run_id,
            step=one.key,
            idempotency_key=f"{job.steps.run_id}/{one.key}",
            resources=self._resources,
        )
        try:
            async with asyncio.timeout(job.remaining()):
                answer = await tool.call(context, call.arguments)
        except TimeoutError:
            return failed("timeout", "Your time was up before the tool had answered.")
        if not one.note:
            return answer
        return answer.model_copy(update={"text": f"{one.note}\n{answer.text}"})

    def _tool(self, job: Assignment, call: ToolCall) -> Tool | None:
        return self._tools.get(call.name) if call.name in job.agent.spec.tools else None

    def _intent(self, one: "_Call", key: str, ends: Ends) -> Intent[ToolAnswer] | None:
        """What becomes of the call when a crash leaves the step under the key in doubt."""
        tool = self._tool(one.job, one.call)
        if tool is None or tool.effect is not Effect.WRITE:
            return None
        event = ToolInDoubt(tool=shown_name(one.call), call_id=one.call.id)
        doubt = one.job.draft(event, key)

        async def left_alone() -> Done[ToolAnswer]:
            return await ends(in_doubt())

        async def as_a_person_says() -> Done[ToolAnswer]:
            return await ends(await self._in_doubt(one, key, tool))

        match tool.in_doubt:
            case InDoubt.REPEAT:
                return Intent(doubt)
            case InDoubt.FAIL:
                return Intent(doubt, left_alone)
            case InDoubt.ASK:
                return Intent(doubt, as_a_person_says)
            case never:
                assert_never(never)

    async def _in_doubt(self, one: "_Call", key: str, tool: Tool) -> ToolAnswer:
        said = await self._approvals.doubt(one.job, key, one.call)
        match said.decision:
            case Decision.APPROVE:
                return await one.job.steps.run(self._again(one, f"{key}/again"))
            case Decision.RESPOND:
                return said_by(said, tool)
            case _:
                return in_doubt(said.comment)

    def _again(self, one: "_Call", key: str) -> Step[ToolAnswer]:
        """The call once more, as a step of its own: it too may be cut, and then a person is asked anew."""

        async def work() -> Done[ToolAnswer]:
            return await ends(await self._answer(one))

        async def ends(answer: ToolAnswer) -> Done[ToolAnswer]:
            return Done(answer, Usage(tool_calls=1))

        intent = self._intent(one, key, ends)
        return Step(key, work, ANSWER, agent=one.job.name, intent=intent)

    def _label(self, job: Assignment, call: ToolCall) -> str:
        known = call.name in job.agent.spec.tools and call.name in self._tools
        return call.name if known else UNKNOWN_TOOL


def in_doubt(comment: str = "") -> ToolAnswer:
    """The answer to a writing call that a crash cut and that is not made again; a person may say why."""
    message = (
        "It is not known whether this call took effect: what made it ended before the answer came. "
        "It was not made again. Find out before you ask for it once more."
    )
    said = f" A person said: {comment}" if comment else ""
    return _not_made(failed("in_doubt", f"{message}{said}"))


def too_many() -> ToolAnswer:
    """The answer to a call that is not made, because its turn has too many."""
    message = f"This call was not made: a turn may have {MAX_CALLS}. Ask again later."
    return _not_made(failed("too_many_calls", message, retryable=True))


def unfit() -> ToolAnswer:
    """The answer to a call about which nobody was asked, as its tool did not take its arguments then."""
    message = "This call was not made: its arguments were not right when you wrote it. Ask again."
    return _not_made(failed("invalid_arguments", message))


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


@dataclass(frozen=True)
class _Call:
    """One call of a turn; `note` is what its model is told of it besides its result."""

    job: Assignment
    turn: int
    key: str
    call: ToolCall
    finish: "_Finish"
    note: str = ""


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
