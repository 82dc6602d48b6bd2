"""What goes over the wire: requests as they are checked, records as they are shown."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from posthouse.clock import iso
from posthouse.control.journal import StepDone
from posthouse.runs.model import RunError, RunRecord, Status
from posthouse.workflows.definition import Workflow

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


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


class ResearchRequest(BaseModel):
    """A topic to look into."""

    model_config = ConfigDict(extra="forbid")

    topic: str
    depth: Literal["standard", "deep"] = "standard"


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
        "usage": record.usage.model_dump(),
        "seq": record.seq,
        "epoch": record.epoch,
        "parent": record.parent,
        "created_at": iso(record.created_at),
        "updated_at": iso(record.updated_at),
        "started_at": _moment(record.started_at),
        "ended_at": _moment(record.ended_at),
    }


def run_view(record: RunRecord, steps: Iterable[StepDone]) -> dict[str, Any]:
    """A run as it is shown by itself; what its steps returned is shown with the steps."""
    return summary_view(record) | {
        "input": record.input,
        "output": record.output,
        "steps": [step_view(step) for step in steps],
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


def _moment(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else iso(milliseconds)
