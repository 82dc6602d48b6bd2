"""The run record: its statuses, its stored form, and what a reader sees of it."""

from enum import StrEnum
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, computed_field

from posthouse.errors import Fault

SCHEMA_VERSION = 1
NEWER = "the run was written by a newer posthouse than this one"
SCHEMA_VERSIONS = {1: "the first: record, journal, event log, waits and starts"}


class Status(StrEnum):
    """Where a run is."""

    PENDING = "pending"
    RUNNING = "running"
    AWAITING_INPUT = "awaiting_input"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.COMPLETED, Status.INCOMPLETE, Status.FAILED, Status.CANCELLED})
LIVE = frozenset(Status) - TERMINAL


class RunError(BaseModel):
    """Why a run did not complete, as the caller sees it.

    `status` follows from `retryable`, so that records from before there was one have it too.
    """

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    retryable: bool

    @computed_field  # type: ignore[prop-decorator]
    @property
    def status(self) -> Literal[503, 422]:
        """The HTTP status for whoever answers a request of their own with the run."""
        return Fault(self.retryable).status


class UsageTotals(BaseModel):
    """What a run spent, a root with all below it; `unpriced_calls` are those of models without a known price.

    What was wasted went into tries that failed, and is not among the tokens.
    """

    model_config = ConfigDict(frozen=True)

    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    nano_usd: int = 0
    unpriced_calls: int = 0
    wasted_tokens: int = 0
    wasted_nano_usd: int = 0


class RunRecord(BaseModel):
    """A run as it stands in Redis. Times in milliseconds since 1970 by Redis' clock.

    `not_before` is 0 when it may begin at once, `timeout` (milliseconds from its start) is 0 for none; `budget` says
    whether there are limits on what its tree may spend.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    tenant: str
    workflow: str
    version: int
    status: Status
    input: Any
    output: Any = None
    error: RunError | None = None
    metadata: dict[str, str] = {}
    wait_reason: str | None = None
    epoch: int
    seq: int
    dispatch: int
    owner: str | None = None
    usage: UsageTotals = UsageTotals()
    band: int = 5
    not_before: int = 0
    timeout: int = 0
    retries: int = 0
    root: str
    parent: str | None = None
    subtask: str | None = None
    models: dict[str, tuple[str, ...]] = {}
    budget: bool = False
    created_at: int
    updated_at: int
    started_at: int | None = None
    ended_at: int | None = None

    @property
    def terminal(self) -> bool:
        """Whether the run has ended."""
        return self.status in TERMINAL

    @property
    def priority(self) -> int:
        """As its caller gave it: 9 begins first, 1 last."""
        return 10 - self.band


_JSON = frozenset({"input", "output", "error", "metadata", "models"})
_USAGE = tuple(UsageTotals.model_fields)
FIELDS = (
    "tenant", "workflow", "version", "status", "input", "output", "error", "metadata", "wait_reason",
    "epoch", "seq", "dispatch", "owner", "root", "parent", "subtask", "models", "budget", "created_at", "updated_at",
    "started_at", "ended_at", "band", "not_before", "timeout", "retries", *_USAGE,
)  # fmt: skip
SUMMARY_FIELDS = tuple(name for name in FIELDS if name not in {"input", "output"})


def record_from(
    run_id: str, values: dict[str, bytes | None], kind: Literal["whole", "summary"] = "whole"
) -> RunRecord:
    """The record from the hash's values by field name; a summary has neither input nor output."""
    plain = {
        name: orjson.loads(value) if name in _JSON else value.decode()
        for name, value in values.items()
        if value
    }
    usage = {name: plain.pop(name) for name in _USAGE if name in plain}
    if kind == "summary":
        plain["input"] = None
    return RunRecord.model_validate({"run_id": run_id, "usage": usage, **plain})
