"""The vocabulary of events: one class each, one union. The names are stored and sent: they are for ever."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

HEAD_LIMIT = 1024


def head(text: str) -> str:
    """The first KiB of a text, for an event; the whole is in the journal. Lone surrogates become `?`."""
    raw = text[: HEAD_LIMIT + 1].encode(errors="replace")
    if len(raw) <= HEAD_LIMIT:
        return raw.decode()
    return raw[: HEAD_LIMIT - 3].decode(errors="ignore") + "…"


class Fact(BaseModel):
    """What every event's data shares: it never changes, and readers skip fields that they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def data_json(self) -> str:
        """The event's data as one line of JSON, without its type."""
        return self.model_dump_json(exclude={"type"}, exclude_none=True)


class RunCreated(Fact):
    """A run was accepted."""

    type: Literal["run.created"] = "run.created"
    workflow: str
    version: int


class RunStarted(Fact):
    """A worker claimed the run for the first time."""

    type: Literal["run.started"] = "run.started"
    worker: str


class RunResumed(Fact):
    """A worker claimed the run again.

    `reason` is crash, drain, isolation, lost, retry, or what it waited for: timer, model, input, child.
    """

    type: Literal["run.resumed"] = "run.resumed"
    worker: str
    reason: str


class RunWaiting(Fact):
    """The run is parked and holds no worker."""

    type: Literal["run.waiting"] = "run.waiting"
    wait_reason: str


class RunRetried(Fact):
    """An ended run is pending again; `steps` are set aside and done anew."""

    type: Literal["run.retried"] = "run.retried"
    steps: int


class RunCompleted(Fact):
    """The run ended with its whole output; the output itself is in the run record."""

    type: Literal["run.completed"] = "run.completed"


class RunIncomplete(Fact):
    """The run was stopped by a limit; what it had is its output."""

    type: Literal["run.incomplete"] = "run.incomplete"
    code: str
    message: str


class RunFailed(Fact):
    """The run ended without an output."""

    type: Literal["run.failed"] = "run.failed"
    code: str
    message: str
    retryable: bool


class RunCancelled(Fact):
    """Somebody ended the run."""

    type: Literal["run.cancelled"] = "run.cancelled"


class PlanCreated(Fact):
    """An orchestrator has its plan; `subtasks` are their ids in an order in which they could run."""

    type: Literal["plan.created"] = "plan.created"
    subtasks: tuple[str, ...]


class SubtaskStarted(Fact):
    """A worker claimed a child run for the first time; the envelope's run is the child."""

    type: Literal["subtask.started"] = "subtask.started"
    subtask: str
    worker: str


class SubtaskCompleted(Fact):
    """A child run ended with an output; `status` is completed, or incomplete with the reason."""

    type: Literal["subtask.completed"] = "subtask.completed"
    subtask: str
    status: str
    code: str | None = None
    message: str | None = None


class SubtaskFailed(Fact):
    """A child run ended without an output."""

    type: Literal["subtask.failed"] = "subtask.failed"
    subtask: str
    code: str
    message: str
    retryable: bool


class SubtaskCancelled(Fact):
    """Somebody ended a child run."""

    type: Literal["subtask.cancelled"] = "subtask.cancelled"
    subtask: str


class SubtaskSkipped(Fact):
    """A subtask is not run, because others (`because`) brought no result."""

    type: Literal["subtask.skipped"] = "subtask.skipped"
    subtask: str
    because: tuple[str, ...]


class InputRequested(Fact):
    """A person is asked; `question` is the head of the text, `tool` the one that waits for an approval."""

    type: Literal["input.requested"] = "input.requested"
    input_id: str
    kind: str
    question: str
    tool: str | None = None


class InputAnswered(Fact):
    """A person answered; the answer itself is in the journal."""

    type: Literal["input.answered"] = "input.answered"
    input_id: str
    decision: str


class InputExpired(Fact):
    """Nobody answered in time; the run goes on as the question said."""

    type: Literal["input.expired"] = "input.expired"
    input_id: str


class BudgetWarning(Fact):
    """So much of the nearest limit is spent, in percent."""

    type: Literal["budget.warning"] = "budget.warning"
    percent: int


class BudgetExceeded(Fact):
    """A limit is reached, and `action` follows: incomplete, fail or ask.

    `limit` is tokens, nano_usd, model_calls, tool_calls, seconds or price.
    """

    type: Literal["budget.exceeded"] = "budget.exceeded"
    limit: str
    action: str


class TurnStarted(Fact):
    """A model request is about to be sent."""

    type: Literal["turn.started"] = "turn.started"
    iteration: int
    model: str


class TurnCompleted(Fact):
    """The model answered; tokens are None when the provider did not say."""

    type: Literal["turn.completed"] = "turn.completed"
    iteration: int
    model: str
    finish_reason: str
    latency_ms: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tool_calls: tuple[str, ...] = ()


class MessageDelta(Fact):
    """A piece of the model's text as it arrives; pushed only, never stored. Offset in characters."""

    type: Literal["message.delta"] = "message.delta"
    offset: int
    text: str


class MessageCompleted(Fact):
    """The model's text of one turn is whole; `text` is its head, `length` in characters."""

    type: Literal["message.completed"] = "message.completed"
    text: str
    length: int


class MessageSuperseded(Fact):
    """The text streamed so far for this step was cut by a crash and will be streamed again."""

    type: Literal["message.superseded"] = "message.superseded"


class ToolStarted(Fact):
    """A tool call begins; `arguments` is the head of their JSON text."""

    type: Literal["tool.started"] = "tool.started"
    tool: str
    call_id: str
    arguments: str


class ToolCompleted(Fact):
    """A tool call answered; `result` is its head, `length` in characters."""

    type: Literal["tool.completed"] = "tool.completed"
    tool: str
    call_id: str
    duration_ms: int
    result: str
    length: int


class ToolFailed(Fact):
    """A tool call failed; the model was told so."""

    type: Literal["tool.failed"] = "tool.failed"
    tool: str
    call_id: str
    duration_ms: int
    error: str
    message: str
    retryable: bool


class ToolInDoubt(Fact):
    """A call that changes the world was begun, and nobody knows whether it took effect."""

    type: Literal["tool.in_doubt"] = "tool.in_doubt"
    tool: str
    call_id: str


class ModelRetrying(Fact):
    """A model request failed in a passing way and will be sent again after `delay_ms`."""

    type: Literal["model.retrying"] = "model.retrying"
    code: str
    attempt: int
    delay_ms: int


class ModelRouted(Fact):
    """A request goes to this model: `reason` is tier, run_override, cheaper, fallback, breaker_open or rate_limited."""

    type: Literal["model.routed"] = "model.routed"
    provider: str
    model: str
    tier: str
    reason: str


class StallDetected(Fact):
    """An agent goes in circles; `pattern` says how, `action` (nudged, blocked, stopped) what was done."""

    type: Literal["stall.detected"] = "stall.detected"
    pattern: str
    action: str


class SourceFound(Fact):
    """A document was read."""

    type: Literal["source.found"] = "source.found"
    address: str
    title: str


Event = Annotated[
    RunCreated
    | RunStarted
    | RunResumed
    | RunWaiting
    | RunRetried
    | RunCompleted
    | RunIncomplete
    | RunFailed
    | RunCancelled
    | PlanCreated
    | SubtaskStarted
    | SubtaskCompleted
    | SubtaskFailed
    | SubtaskCancelled
    | SubtaskSkipped
    | InputRequested
    | InputAnswered
    | InputExpired
    | BudgetWarning
    | BudgetExceeded
    | TurnStarted
    | TurnCompleted
    | MessageDelta
    | MessageCompleted
    | MessageSuperseded
    | ToolStarted
    | ToolCompleted
    | ToolFailed
    | ToolInDoubt
    | ModelRetrying
    | ModelRouted
    | StallDetected
    | SourceFound,
    Field(discriminator="type"),
]

EVENT: TypeAdapter[Event] = TypeAdapter(Event)

TERMINAL_TYPES = frozenset({"run.completed", "run.incomplete", "run.failed", "run.cancelled"})


class Draft(BaseModel):
    """An event that is about to be written; the script that writes it adds seq, run, epoch and time."""

    model_config = ConfigDict(frozen=True)

    event: Event
    agent: str = ""
    step: str = ""

    def fields(self) -> tuple[str, str, str, str]:
        """Type, agent, step and data as the scripts take them."""
        return self.event.type, self.agent, self.step, self.event.data_json()
