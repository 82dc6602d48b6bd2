"""What goes over the wire about schedules."""

from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from api_app.schemas import MetadataKey, MetadataValue, time_view
from posthouse.budget.model import Budget
from posthouse.clock import iso
from posthouse.schedules.model import CatchUp, Overlap, Schedule


class ScheduleRequest(BaseModel):
    """Runs that somebody wants again and again."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "cron": "0 9 * * MON-FRI",
                    "time_zone": "Europe/Berlin",
                    "workflow": "research",
                    "input": {"topic": "durable execution"},
                }
            ]
        },
    )

    cron: str = Field(
        min_length=1,
        max_length=1000,
        description="Minute, hour, day of month, month, day of week.",
    )
    time_zone: str = Field("UTC", max_length=64, description="A name as in Europe/Berlin.")
    workflow: str = Field(min_length=1, max_length=128, description="The name of a definition.")
    input: Any = Field(description="What the definition's input schema says.")
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=16, description="Text of your own, kept with each run."
    )
    priority: int = Field(5, ge=1, le=9, strict=True, description="9 begins first, 1 last.")
    timeout_seconds: float | None = Field(
        None,
        ge=0.1,
        le=31_536_000,
        strict=True,
        description="From the start of a run; then it fails with `timeout`.",
    )
    budget: Budget | None = Field(
        None, description="The most that each run and all below it may spend; USD, seconds."
    )
    models: dict[str, list[str]] = Field(
        default_factory=dict,
        max_length=2,
        description="Models by tier (`fast`, `smart`) in place of the fleet's, as `provider:model`.",
    )
    overlap: Overlap = Field(
        Overlap.SKIP, description="What becomes of a slot while the last run still lives."
    )
    catch_up: CatchUp = Field(
        CatchUp.LAST, description="Which slots are made good that passed while no worker ran."
    )


def schedule_view(schedule: Schedule) -> dict[str, Any]:
    """A schedule as it is shown by itself."""
    return schedule_summary(schedule) | {"input": orjson.loads(schedule.input)}


def schedule_summary(schedule: Schedule) -> dict[str, Any]:
    """A schedule as lists show it, without its input."""
    return {
        "schedule_id": schedule.schedule_id,
        "cron": schedule.rule.cron,
        "time_zone": schedule.rule.time_zone,
        "workflow": schedule.workflow,
        "metadata": schedule.metadata,
        "priority": schedule.priority,
        "timeout_seconds": schedule.timeout_ms / 1000 if schedule.timeout_ms else None,
        "budget": _limits(schedule.budget),
        "models": schedule.models,
        "overlap": schedule.overlap,
        "catch_up": schedule.catch_up,
        "next_at": time_view(schedule.next_slot),
        "last_at": time_view(schedule.last_slot),
        "last_run_id": schedule.last_run,
        "fired": schedule.fired,
        "skipped": schedule.skipped,
        "created_at": iso(schedule.created_at),
    }


def _limits(budget: Budget | None) -> dict[str, Any] | None:
    """Those that were given."""
    return None if budget is None else budget.model_dump(mode="json", exclude_none=True)
