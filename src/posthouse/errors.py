"""Every error of posthouse, by who reacts to it.

PosthouseError
├── RequestError              the caller of the API mends the request
│   ├── InvalidRequest
│   │   └── InvalidAnswer     what a person said does not fit what was asked
│   ├── NotFound
│   ├── Conflict
│   ├── IdempotencyMismatch
│   ├── Gone
│   ├── PayloadTooLarge
│   └── QueueFull
├── StorageUnavailable        the API answers 503; a worker waits and goes on
├── ConfigurationError        the operator mends a setting or a definition
├── ToolFailed                the model is told, and adapts
├── EndpointDown              the run waits without a worker until the model's endpoint may be asked again
│   └── RateLimited           the same, until a limit on its rate leaves room
└── RunFailed                 the run ends with a public code
    ├── ModelUnavailable      transient: backed off and tried again, then the run ends
    ├── InvalidOutput         the model is told what was wrong, a bounded number of times
    ├── InvalidPlan           the planner was told so too, or a person sent its plans back
    ├── ContentRefused
    ├── StepFailed
    ├── LimitReached
    ├── BudgetExceeded        nothing more is bought; what there is is the result, or a person gives more
    ├── InputExpired
    └── Fatal                 fails at once; the operator is woken

Parked, OwnershipLost         control flow of the engine (BaseException): no workflow code catches them
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class RequestCode(StrEnum):
    """Public codes of refused requests."""

    INVALID_REQUEST = "invalid_request"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    GONE = "gone"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    QUEUE_FULL = "queue_full"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class RunCode(StrEnum):
    """Public codes of runs that did not complete."""

    RATE_LIMIT = "rate_limit"
    CONNECTION = "connection"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    INVALID_OUTPUT = "invalid_output"
    CONTENT_REFUSED = "content_refused"
    TOOL_FAILED = "tool_failed"
    MAX_ITERATIONS = "max_iterations"
    POISONED = "poisoned"
    LOOP_DETECTED = "loop_detected"
    INVALID_PLAN = "invalid_plan"
    BUDGET_EXCEEDED = "budget_exceeded"
    INPUT_EXPIRED = "input_expired"
    LOST = "lost"
    FATAL = "fatal"


@dataclass(frozen=True)
class Fault:
    """What a code means to a caller: whether the same run may succeed when it is tried again later."""

    retryable: bool

    @property
    def status(self) -> Literal[503, 422]:
        """The HTTP status for whoever answers a request of their own with the run."""
        return 503 if self.retryable else 422


_PASSES = Fault(retryable=True)
_STAYS = Fault(retryable=False)

FAULTS: Mapping[RunCode, Fault] = {
    RunCode.RATE_LIMIT: _PASSES,
    RunCode.CONNECTION: _PASSES,
    RunCode.SERVER_ERROR: _PASSES,
    RunCode.TIMEOUT: _PASSES,
    RunCode.INVALID_OUTPUT: _STAYS,
    RunCode.CONTENT_REFUSED: _STAYS,
    RunCode.TOOL_FAILED: _STAYS,
    RunCode.MAX_ITERATIONS: _STAYS,
    RunCode.LOOP_DETECTED: _STAYS,
    RunCode.INVALID_PLAN: _STAYS,
    RunCode.BUDGET_EXCEEDED: _STAYS,
    RunCode.INPUT_EXPIRED: _STAYS,
    RunCode.POISONED: _STAYS,
    RunCode.LOST: _STAYS,
    RunCode.FATAL: _STAYS,
}


class PosthouseError(Exception):
    """Anything that posthouse raises on purpose; `str()` of it may be shown to a person."""


class RequestError(PosthouseError):
    """The request cannot be served as it stands; carries the public code."""

    code: RequestCode

    def __init__(self, message: str, *, errors: tuple[dict[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class InvalidRequest(RequestError):
    """A field of the request is missing, unknown or wrong."""

    code = RequestCode.INVALID_REQUEST


class InvalidAnswer(InvalidRequest):
    """The answer to a question does not fit what was asked."""


class NotFound(RequestError):
    """There is no such thing, or it belongs to another tenant."""

    code = RequestCode.NOT_FOUND


class Conflict(RequestError):
    """The thing is in a state that does not allow this."""

    code = RequestCode.CONFLICT


class Gone(RequestError):
    """The time for this is over."""

    code = RequestCode.GONE


class IdempotencyMismatch(RequestError):
    """The idempotency key was used before with another body."""

    code = RequestCode.IDEMPOTENCY_MISMATCH


class PayloadTooLarge(RequestError):
    """The body is above its limit."""

    code = RequestCode.PAYLOAD_TOO_LARGE


class QueueFull(RequestError):
    """No further run is taken in now; `retry_after` in seconds."""

    code = RequestCode.QUEUE_FULL

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageUnavailable(PosthouseError):
    """Redis is away, loading, full or read-only; the same call may succeed later."""


class ConfigurationError(PosthouseError):
    """A setting or a definition is wrong; the process cannot start with it."""


class ToolFailed(PosthouseError):
    """A tool could not do its work; the model is told `kind`, the message and whether to try again."""

    def __init__(
        self, message: str, *, kind: str, retryable: bool = False, status_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retryable = retryable
        self.status_code = status_code


class EndpointDown(PosthouseError):
    """The breaker of a model's endpoint is open; it may be asked again after `wait_seconds`."""

    def __init__(self, wait_seconds: float) -> None:
        super().__init__("the model's endpoint is not asked for a while")
        self.wait_seconds = wait_seconds


class RateLimited(EndpointDown):
    """The model's endpoint takes no more now, by a limit that it or the operator set."""


class RunFailed(PosthouseError):
    """Ends the run as failed with a public code; `str()` of it is shown to the caller."""

    def __init__(self, message: str, *, code: RunCode) -> None:
        super().__init__(message)
        self.code = code

    @property
    def retryable(self) -> bool:
        """Whether the same run may succeed when it is tried again later."""
        return FAULTS[self.code].retryable


class ModelUnavailable(RunFailed):
    """The model's endpoint did not answer properly; `retry_after` is in seconds, None when it did not say."""

    def __init__(self, message: str, *, code: RunCode, retry_after: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class InvalidOutput(RunFailed):
    """The model's answer is not what was asked for, also after it was told so."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=RunCode.INVALID_OUTPUT)


class InvalidPlan(RunFailed):
    """There is no plan that holds, or none that a person agreed to."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=RunCode.INVALID_PLAN)


class ContentRefused(RunFailed):
    """The model declined to answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=RunCode.CONTENT_REFUSED)


class StepFailed(RunFailed):
    """A step that is not an agent's tool call failed, and the workflow did not handle it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=RunCode.TOOL_FAILED)


class LimitReached(RunFailed):
    """The run reached a bound on its steps or events and ends incomplete."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=RunCode.MAX_ITERATIONS)


class BudgetExceeded(RunFailed):
    """What the run may spend is spent; `what` is the limit, as in the event budget.exceeded."""

    def __init__(self, message: str, *, what: str = "") -> None:
        super().__init__(message, code=RunCode.BUDGET_EXCEEDED)
        self.what = what


class InputExpired(RunFailed):
    """Nobody answered in time, and the question said that the run fails then."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=RunCode.INPUT_EXPIRED)


class Fatal(RunFailed):
    """Nothing but a person mends this: a bad key, an unknown model, a fault in the code."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=RunCode.FATAL)


def readable(text: str) -> str:
    """The text without what no JSON may hold: lone surrogates become question marks."""
    return text.encode(errors="replace").decode()


_BY_CODE = {
    RunCode.INVALID_OUTPUT: InvalidOutput,
    RunCode.INVALID_PLAN: InvalidPlan,
    RunCode.CONTENT_REFUSED: ContentRefused,
    RunCode.TOOL_FAILED: StepFailed,
    RunCode.MAX_ITERATIONS: LimitReached,
    RunCode.BUDGET_EXCEEDED: BudgetExceeded,
    RunCode.INPUT_EXPIRED: InputExpired,
    RunCode.FATAL: Fatal,
}


def recorded_failure(code: RunCode, message: str) -> RunFailed:
    """The error that a step ended with, as every replay sees it."""
    if kind := _BY_CODE.get(code):
        return kind(message)
    kind_by_code = ModelUnavailable if FAULTS[code].retryable else RunFailed
    return kind_by_code(message, code=code)


class OwnershipLost(BaseException):
    """This worker no longer owns the run; whatever it was doing for it stops without a word."""
