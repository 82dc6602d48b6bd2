"""What goes over the wire: requests as they are checked, records as they are shown."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

from api_app.money import budget_view, usage_view
from posthouse.budget.model import Budget, BudgetState
from posthouse.clock import iso, wall_ms
from posthouse.control.fleet import WorkerState
from posthouse.control.journal import StepDone
from posthouse.runs.model import RunError, RunRecord, Status
from posthouse.workflows.definition import Workflow

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
LONGEST_WAIT_MS = 366 * 86_400_000

_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d")


def milliseconds(moment: datetime) -> int:
    """Since 1970; never below zero."""
    return max(0, round(moment.timestamp() * 1000))


def _written_out(value: object) -> object:
    """A bare number could be seconds or milliseconds."""
    if not isinstance(value, str) or _DATE.match(value) is None:
        raise PydanticCustomError(
            "moment", "must be a time with its offset, as in 2026-12-24T09:00:00Z"
        )
    return value


def _within_a_year(moment: datetime) -> datetime:
    if milliseconds(moment) > wall_ms() + LONGEST_WAIT_MS:
        raise PydanticCustomError("moment", "must be within a year from now")
    return moment


Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_within_a_year)]


class RunRequest(BaseModel):
    """A run that somebody wants."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"workflow": "research", "input": {"topic": "durable execution"}}]
        },
    )

    workflow: str = Field(min_length=1, max_length=128, description="The name of a definition.")
    input: Any = Field(description="What the definition's input schema says.")
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=16, description="Text of your own, kept with the run."
    )
    priority: int = Field(5, ge=1, le=9, strict=True, description="9 begins first, 1 last.")
    not_before: Moment | None = Field(
        None, description="The run does not begin before; a time with its offset, within a year."
    )
    timeout_seconds: float | None = Field(
        None,
        ge=0.1,
        le=31_536_000,
        strict=True,
        description="From its start; then it fails with `timeout`.",
    )
    budget: Budget | None = Field(
        None, description="The most that the run and all below it may spend; USD, seconds."
    )
    models: dict[str, list[str]] = Field(
        default_factory=dict,
        max_length=2,
        description="Models by tier (`fast`, `smart`) in place of the fleet's, as `provider:model`.",
    )


class RetryRequest(BaseModel):
    """From where an ended run is tried again."""

    model_config = ConfigDict(extra="forbid")

    from_step: str | None = Field(
        None, max_length=256, description="This step and all committed since are done again."
    )
    budget: Budget | None = Field(
        None, description="Limits from now on, of what was spent before too; the others stay."
    )


class ResearchRequest(BaseModel):
    """A topic to look into."""

    model_config = ConfigDict(extra="forbid")

    topic: str
    depth: Literal["standard", "deep"] = "standard"


class OrchestrateRequest(BaseModel):
    """A goal to reach."""

    model_config = ConfigDict(extra="forbid")

    goal: str


def accepted_view(run_id: str, workflow: str, created_at: int) -> dict[str, Any]:
    """The answer to a submission."""
    return {
        "run_id": run_id,
        "workflow": workflow,
        "status": Status.PENDING,
        "created_at": iso(created_at),
    }


def summary_view(record: RunRecord) -> dict[str, Any]:
    """A run as lists show it."""
    return {
        "run_id": record.run_id,
        "workflow": record.workflow,
        "version": record.version,
        "status": record.status,
        "wait_reason": record.wait_reason,
        "error": error_view(record),
        "metadata": record.metadata,
        "usage": usage_view(record.usage),
        "seq": record.seq,
        "epoch": record.epoch,
        "retries": record.retries,
        "priority": record.priority,
        "not_before": time_view(record.not_before or None),
        "timeout_seconds": record.timeout / 1000 if record.timeout else None,
        "parent": record.parent,
        "created_at": iso(record.created_at),
        "updated_at": iso(record.updated_at),
        "started_at": time_view(record.started_at),
        "ended_at": time_view(record.ended_at),
    }


def run_view(
    record: RunRecord,
    steps: Iterable[StepDone],
    budget: BudgetState | None = None,
    open_inputs: Iterable[str] = (),
) -> dict[str, Any]:
    """A run as it is shown by itself; what its steps returned is shown with the steps."""
    return summary_view(record) | {
        "input": record.input,
        "output": record.output,
        "models": record.models,
        "budget": budget_view(budget),
        "steps": [step_view(step) for step in steps],
        "open_inputs": list(open_inputs),
    }


def error_view(record: RunRecord) -> dict[str, Any] | None:
    """Why the run did not complete."""
    return None if record.error is None else record.error.model_dump()


def step_view(step: StepDone) -> dict[str, Any]:
    """A step without what it returned."""
    outcome = step.outcome
    return {
        "step": step.key,
        "agent": outcome.agent or None,
        "status": "completed" if outcome.error is None else "failed",
        "error": None if outcome.error is None else outcome.error.model_dump(),
        "duration_ms": outcome.duration_ms,
        "usage": outcome.usage,
        "seq": outcome.seq,
        "epoch": outcome.epoch,
        "time": iso(outcome.time),
    }


def worker_view(worker: WorkerState) -> dict[str, Any]:
    """A worker as the list of the fleet shows it."""
    times = {"seen_at": iso(worker.seen_at), "started_at": time_view(worker.started_at)}
    return vars(worker) | times


def definition_view(definition: Workflow[Any, Any]) -> dict[str, Any]:
    """A definition with the schemas of what goes in and what comes out."""
    return {
        "name": definition.name,
        "version": definition.version,
        "description": definition.description,
        "input_schema": definition.input_model.model_json_schema(),
        "output_schema": definition.output_model.model_json_schema(mode="serialization"),
    }


# The tutorial knows no `incomplete` and no `cancelled`.
TUTORIAL_STATUS: Mapping[Status, str] = {status: status.value for status in Status} | {
    Status.INCOMPLETE: "completed",
    Status.CANCELLED: "failed",
}
_CANCELLED = RunError(code="cancelled", message="the run was cancelled", retryable=False)


def tutorial_view(record: RunRecord, steps: Iterable[StepDone]) -> dict[str, Any]:
    """A run with the tutorial's field names."""
    return {
        "workflow_id": record.run_id,
        "workflow_type": record.workflow,
        "status": TUTORIAL_STATUS[record.status],
        "input_data": record.input,
        "steps": [step_view(step) for step in steps],
        "output": record.output,
        "error": tutorial_error(record),
        "created_at": iso(record.created_at),
        "updated_at": iso(record.updated_at),
    }


def tutorial_error(record: RunRecord) -> dict[str, Any] | None:
    """Why the run failed, with the tutorial's field names; a run that was stopped with an output has none."""
    match record.status:
        case Status.FAILED:
            error = record.error
        case Status.CANCELLED:
            error = record.error or _CANCELLED
        case Status.INCOMPLETE if record.output is None:
            error = record.error
        case _:
            return None
    return None if error is None else {"error": error.code, **error.model_dump()}


def time_view(milliseconds: int | None) -> str | None:
    """A time as it is shown; None when there is none."""
    return None if milliseconds is None else iso(milliseconds)
