"""One slice of a run: from a claim to its end, its parking, or its release."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, assert_never

import structlog
from pydantic import BaseModel, ValidationError

from posthouse import clock
from posthouse.agents.spec import Agent
from posthouse.engine.context import AgentRunner, Context
from posthouse.engine.dismissals import Dismissals
from posthouse.engine.insist import insist
from posthouse.engine.leases import Held
from posthouse.engine.steps import Draining, JournalledSteps, Shared
from posthouse.engine.suspects import Suspects
from posthouse.errors import (
    Fatal,
    LimitReached,
    ModelUnavailable,
    OwnershipLost,
    RunCode,
    RunFailed,
    readable,
)
from posthouse.events.types import Draft, RunCompleted, RunIncomplete, RunWaiting
from posthouse.events.types import RunFailed as RunFailedEvent
from posthouse.journal.model import Parked
from posthouse.journal.store import Loaded
from posthouse.runs.model import RunError, Status
from posthouse.runs.ownership import Claimed
from posthouse.runs.transitions import Ending, Transitions
from posthouse.telemetry import Metrics
from posthouse.workflows.definition import Incomplete, Workflow

log = structlog.get_logger()

# The first of the kinds that a run waits for is what a reader is told.
_REASONS = {
    "version": "version",
    "input": "input",
    "model": "model",
    "rate_limit": "rate_limit",
    "child": "children",
    "timer": "timer",
}

AnyWorkflow: TypeAlias = Workflow[Any, Any]


@dataclass(frozen=True)
class Workshop:
    """What a slice works with; the same for every run of a worker."""

    transitions: Transitions
    shared: Shared
    workflows: Mapping[tuple[str, int], AnyWorkflow]
    agents: dict[str, Agent]
    runner: AgentRunner
    metrics: Metrics
    dismissals: Dismissals
    suspects: Suspects | None = None


class Slice:
    """Carries one claimed run on as far as it goes."""

    def __init__(self, workshop: Workshop, held: Held) -> None:
        self._workshop = workshop
        self._held = held
        self._began = clock.monotonic()

    async def carry(self) -> None:
        """Ends, parks or gives back the run; returns without a word when the ownership is lost."""
        held = self._held
        with structlog.contextvars.bound_contextvars(run_id=held.run.run_id, epoch=held.run.epoch):
            try:
                await self._to_the_end()
            except OwnershipLost:
                log.info("slice_dropped")
            except Draining:
                await self._give_back()
            except asyncio.CancelledError:
                if not held.lost:
                    await self._give_back()
                raise
            finally:
                self._workshop.shared.leases.drop(held)

    async def _give_back(self) -> None:
        run, told, drain = self._held.run, self._held.told, self._workshop.shared.drain
        giving = asyncio.ensure_future(
            insist(lambda: self._workshop.transitions.release(run, told, drain.reason))
        )
        try:
            await asyncio.shield(giving)
        except asyncio.CancelledError:
            # The drain's limit: the run must be given back all the same, unless it is ours no more.
            if not self._held.lost:
                await giving
            raise
        log.info("run_released")

    async def _to_the_end(self) -> None:
        while True:
            try:
                steps = JournalledSteps(self._workshop.shared, self._held, await self._load())
            except RunFailed as error:
                return await self._finish(failed(error))
            try:
                result = await self._advance(steps)
            finally:
                await steps.settled()
            match result:
                case Ending():
                    return await self._finish(result)
                case Parked() if self._down_too_long(result):
                    return await self._finish(failed(_down(_reason(result))))
                case Parked():
                    signals = await self._park(result)
                    if signals is None:
                        return None
                    self._held.run = replace(self._held.run, signals=signals)
                case _:
                    assert_never(result)

    async def _load(self) -> Loaded:
        run = self._held.run
        if run.epoch == 1 and run.steps == 0 and run.signals == 0:
            return Loaded({}, {})
        return await insist(lambda: self._workshop.shared.store.load(run.run_id))

    async def _advance(self, steps: JournalledSteps) -> Ending | Parked:
        run = self._held.run
        workflow = self._workshop.workflows[run.workflow, run.version]
        context = Context(
            steps, self._workshop.agents, self._workshop.runner, self._workshop.workflows
        )
        try:
            request = workflow.input_model.model_validate_json(run.input)
        except ValidationError:
            log.exception("input_no_longer_valid")
            return failed(Fatal("the stored input does not fit this version of the workflow"))
        try:
            result = await workflow.function(context, request)
            return self._ending_of(workflow, result)
        except BaseException as error:
            return _what_follows(error)

    def _ending_of(self, workflow: AnyWorkflow, result: Any) -> Ending:
        model = result.output if isinstance(result, Incomplete) else result
        if not isinstance(model, BaseModel):
            return failed(Fatal(f"workflow {workflow.name!r} returned no output model"))
        output = model.model_dump_json()
        limit = self._workshop.shared.bounds.output_bytes
        if len(output.encode()) > limit:
            return failed(Fatal(f"the output is larger than {limit} bytes"))
        if isinstance(result, Incomplete):
            return incomplete(output, result.code, result.message)
        return Ending(Status.COMPLETED, Draft(event=RunCompleted()), output)

    async def _finish(self, ending: Ending) -> None:
        run = self._held.run
        await insist(lambda: self._workshop.transitions.finish(run, self._held.told, ending))
        metrics = self._workshop.metrics
        before = (run.claimed_at - (run.started_at or run.claimed_at)) / 1000
        metrics.run_ended(run.workflow, ending.status, before + clock.monotonic() - self._began)
        log.info("run_ended", status=ending.status, workflow=run.workflow, **_code_of(ending))

    async def _park(self, parked: Parked) -> int | None:
        reason = _reason(parked)
        event = Draft(event=RunWaiting(wait_reason=reason))
        held = self._held
        signals = await insist(
            lambda: self._workshop.shared.store.park(
                held.run,
                held.told,
                status=_status(parked),
                reason=reason,
                event=event,
                waits=parked.waits,
            )
        )
        if signals is None:
            log.info("run_parked", wait_reason=reason, workflow=held.run.workflow)
        return signals

    def _down_too_long(self, parked: Parked) -> bool:
        if _reason(parked) not in ("model", "rate_limit"):
            return False
        run, bound = self._held.run, self._workshop.shared.bounds.model_wait_seconds
        waited = run.claimed_at - run.down_since if run.down_since else 0
        return not bound or waited / 1000 > bound


def _reason(parked: Parked) -> str:
    kinds = {wait.kind for wait in parked.waits}
    first = next(kind for kind in _REASONS if kind in kinds)
    return _REASONS[first]


def _status(parked: Parked) -> Status:
    asked = any(wait.kind == "input" for wait in parked.waits)
    return Status.AWAITING_INPUT if asked else Status.RUNNING


def _code_of(ending: Ending) -> dict[str, str]:
    match ending.event.event:
        case RunFailedEvent(code=code) | RunIncomplete(code=code):
            return {"code": code}
        case _:
            return {}


def _down(reason: str) -> ModelUnavailable:
    if reason == "rate_limit":
        return ModelUnavailable(
            "The model provider has limited the rate of requests for too long.",
            code=RunCode.RATE_LIMIT,
        )
    return ModelUnavailable(
        "The model's endpoint has been down for too long.", code=RunCode.CONNECTION
    )


def _what_follows(error: BaseException) -> Ending | Parked:
    """What comes of a run whose workflow raised this; control flow that is not the workflow's own goes on."""
    match error:
        case Parked():
            return error
        case LimitReached():
            return incomplete("", error.code, str(error))
        case RunFailed():
            return failed(error)
        case OwnershipLost() | Draining() | KeyboardInterrupt():
            raise error
        case asyncio.CancelledError() if being_cancelled():
            raise error
        case BaseExceptionGroup() if error.subgroup((OwnershipLost, Draining)):
            raise Draining from error
        case BaseExceptionGroup() if error.subgroup(Parked):
            return failed(Fatal("branches of a workflow run in ctx.gather, not in a task group"))
        case _:
            log.error("workflow_raised", exc_info=error)
            return failed(Fatal("the workflow failed with an internal error"))


def being_cancelled() -> bool:
    """Whether somebody cancels this task; else a CancelledError is the workflow's own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def failed(error: RunFailed) -> Ending:
    """The ending of a run that failed, with what its caller may know."""
    message = readable(str(error))
    problem = RunError(code=error.code, message=message, retryable=error.retryable)
    event = RunFailedEvent(code=error.code, message=message, retryable=error.retryable)
    return Ending(Status.FAILED, Draft(event=event), error=problem.model_dump_json())


def incomplete(output: str, code: RunCode, message: str) -> Ending:
    """The ending of a run that a limit stopped."""
    problem = RunError(code=code, message=message, retryable=False)
    event = RunIncomplete(code=code, message=message)
    return Ending(Status.INCOMPLETE, Draft(event=event), output, problem.model_dump_json())


def owner_of(claimed: Claimed) -> str:
    """A name for a slice in logs and tasks."""
    return f"{claimed.run_id}:{claimed.epoch}"
