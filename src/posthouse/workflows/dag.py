"""Carries out a plan on a context: every subtask a child run, begun when what it depends on has ended."""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from posthouse.errors import RunCode
from posthouse.events.types import PlanCreated, SubtaskSkipped
from posthouse.journal.model import ChildEnd, Parked, SourceRead
from posthouse.workflows.context import RunContext
from posthouse.workflows.orchestration import SubtaskResult, subtask_task
from posthouse.workflows.plan import FailurePolicy, NodeState, Plan, Subtask, losses, order

_SOURCES: TypeAdapter[tuple[SourceRead, ...]] = TypeAdapter(tuple[SourceRead, ...])
_PLAN_KEY = re.compile(r"plan(?::(\d+))?")
_SUBTASK = "subtask:"


class AgentTask(BaseModel):
    """Work for one agent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str = Field(min_length=1, max_length=64, description="The agent that does it.")
    task: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200_000)
    ] = Field(description="What to do, complete in itself.")
    max_iterations: int | None = Field(
        None, ge=1, le=100, description="Its most turns; by default those of the agent."
    )


class DrawnPlan(Plan):
    """A plan as it is journalled, with what becomes of a subtask that cannot have what it needs."""

    on_failure: FailurePolicy = FailurePolicy.SKIP


@dataclass(frozen=True)
class Work:
    """The run that a subtask is: its workflow, and that one's input."""

    workflow: str
    request: BaseModel


@dataclass(frozen=True)
class Ended:
    """How a subtask ended: its result, its run, and the code of what was wrong; None where there is none."""

    result: SubtaskResult
    run_id: str | None = None
    code: RunCode | None = None


Assign: TypeAlias = Callable[[Subtask, Mapping[str, SubtaskResult]], Work]


def to_agents(goal: str) -> Assign:
    """Each subtask goes to its agent, which reads the goal, its task and what it depends on."""

    def assign(subtask: Subtask, results: Mapping[str, SubtaskResult]) -> Work:
        task = subtask_task(goal, subtask, results)
        return Work("agent", AgentTask(agent=subtask.agent, task=task))

    return assign


async def announce(
    ctx: RunContext, plan: Plan, policy: FailurePolicy = FailurePolicy.SKIP, *, number: int = 1
) -> None:
    """Journals the plan and says that there is one; from then on it is shown, until a higher number takes its place."""
    drawn = DrawnPlan.model_validate({**plan.model_dump(), "on_failure": policy})
    key = "plan" if number == 1 else f"plan:{number}"
    await ctx.step(key, _kept, drawn)
    await ctx.emit(f"{key}/created", PlanCreated(subtasks=order(plan)))


async def run(
    ctx: RunContext, plan: Plan, assign: Assign, policy: FailurePolicy = FailurePolicy.SKIP
) -> dict[str, Ended]:
    """How each subtask ended, in the plan's order; one that fails, fails alone. While children work the run is parked.

    One plan a run. Raises LimitReached when there may be no more child runs.
    """
    return await _Walk(ctx, plan, assign, policy).all()


def number_of(key: str) -> int:
    """Which plan of its run the step has journalled, from 1; 0 for a step that has none."""
    found = _PLAN_KEY.fullmatch(key)
    return int(found[1] or 1) if found else 0


def subtask_key(subtask_id: str) -> str:
    """The key of the step that makes the subtask's run."""
    return f"{_SUBTASK}{subtask_id}"


def skipped_key(subtask_id: str) -> str:
    """The key of the step that says that the subtask is not run."""
    return f"{subtask_key(subtask_id)}/skipped"


def state_of(status: str, has_output: bool) -> NodeState:
    """A subtask's state by the status of its run; one that nobody has begun is `waiting`."""
    match status:
        case "pending":
            return NodeState.WAITING
        case "running" | "awaiting_input":
            return NodeState.RUNNING
        case "completed":
            return NodeState.COMPLETED
        case "incomplete":
            return NodeState.INCOMPLETE if has_output else NodeState.FAILED
        case "cancelled":
            return NodeState.CANCELLED
        case _:
            return NodeState.FAILED


class _Walk:
    """All subtasks at once, each a branch that first waits for the branches that it depends on."""

    def __init__(self, ctx: RunContext, plan: Plan, assign: Assign, policy: FailurePolicy) -> None:
        self._ctx = ctx
        self._plan = plan
        self._assign = assign
        self._policy = policy
        self._over = {one.id: asyncio.Event() for one in plan.subtasks}
        self._ends: dict[str, Ended | BaseException] = {}

    async def all(self) -> dict[str, Ended]:
        subtasks = self._plan.subtasks
        ends = await self._ctx.gather(*(self._branch(one) for one in subtasks))
        return {one.id: end for one, end in zip(subtasks, ends, strict=True)}

    async def _branch(self, subtask: Subtask) -> Ended:
        try:
            end = await self._carried_out(subtask)
        except BaseException as error:
            self._ends[subtask.id] = error
            raise
        else:
            self._ends[subtask.id] = end
            return end
        finally:
            self._over[subtask.id].set()

    async def _carried_out(self, subtask: Subtask) -> Ended:
        before = {one: await self._result_of(one) for one in subtask.depends_on}
        states = {one: result.state for one, result in before.items()}
        lost = losses(self._plan, states, subtask.id)
        if lost and self._policy is FailurePolicy.SKIP:
            said = SubtaskSkipped(subtask=subtask.id, because=lost)
            await self._ctx.emit(skipped_key(subtask.id), said)
            return _skipped(subtask, lost)
        work = self._assign(subtask, before)
        key, name = subtask_key(subtask.id), subtask.id
        child = await self._ctx.spawn(key, work.workflow, work.request, subtask=name)
        return _ended(subtask, await self._ctx.join(child))

    async def _result_of(self, subtask_id: str) -> SubtaskResult:
        await self._over[subtask_id].wait()
        match self._ends[subtask_id]:
            case Ended(result=result):
                return result
            case Parked():
                raise Parked(())  # its own branch says what it waits for
            case error:
                raise error


async def _kept(drawn: DrawnPlan) -> DrawnPlan:
    return drawn


def _skipped(subtask: Subtask, lost: tuple[str, ...]) -> Ended:
    reason = f"It needs what brought no result: {', '.join(lost)}."
    result = SubtaskResult(
        id=subtask.id, agent=subtask.agent, state=NodeState.SKIPPED, reason=reason
    )
    return Ended(result)


def _ended(subtask: Subtask, end: ChildEnd) -> Ended:
    error = end.error or {}
    state = state_of(end.status, end.output is not None)
    text, sources = _found(end.output) if state.done else ("", ())
    result = SubtaskResult(
        id=subtask.id,
        agent=subtask.agent,
        state=state,
        text=text,
        reason=str(error.get("message", "")),
        sources=sources,
    )
    return Ended(result, end.run_id, _code(error.get("code")))


def _found(output: Any) -> tuple[str, tuple[SourceRead, ...]]:
    """The text and the sources that a run gave; an output of another form as JSON."""
    match output:
        case {"text": str(text), **rest}:
            try:
                return text, _SOURCES.validate_python(rest.get("sources", ()))
            except ValidationError:
                return text, ()
        case _:
            return orjson.dumps(output).decode(), ()


def _code(code: Any) -> RunCode | None:
    try:
        return RunCode(code)
    except ValueError:
        return None
