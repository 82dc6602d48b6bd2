"""Which steps of an ended run a retry does again."""

from collections.abc import Iterable

from posthouse.control.journal import StepDone
from posthouse.errors import InvalidRequest
from posthouse.runs.model import TERMINAL, Status

RETRYABLE = TERMINAL - {Status.COMPLETED}


def steps_to_repeat(steps: Iterable[StepDone], from_step: str | None) -> list[str]:
    """The keys of those that failed, and of everything committed since `from_step`, that one included.

    Raises InvalidRequest when the run has no such step.
    """
    done = list(steps)
    since = None
    if from_step is not None:
        since = next((_moment(step) for step in done if step.key == from_step), None)
        if since is None:
            message = "is not the key of a step of this run"
            error = {"location": "from_step", "message": message}
            raise InvalidRequest(f"from_step {message}", errors=(error,))
    return [
        step.key
        for step in done
        if step.outcome.error is not None or (since is not None and _moment(step) >= since)
    ]


def _moment(step: StepDone) -> tuple[int, int]:
    """When it was committed; steps without events of their own share a seq."""
    return step.outcome.seq, step.outcome.ordinal
