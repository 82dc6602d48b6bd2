"""Which steps a retry does again."""

import pytest

from posthouse.control.journal import StepDone
from posthouse.control.retrying import RETRYABLE, steps_to_repeat
from posthouse.errors import InvalidRequest
from posthouse.journal.model import Outcome, StepError
from posthouse.runs.model import Status


def step(key: str, seq: int, ordinal: int, *, failed: bool = False) -> StepDone:
    error = StepError(code="tool_failed", message="no") if failed else None
    return StepDone(key, Outcome(seq=seq, epoch=1, time=1, ordinal=ordinal, error=error))


STEPS = [
    step("a", 2, 0),
    step("c", 5, 1),
    step("b", 5, 2, failed=True),
    step("d", 5, 3),
    step("e", 9, 4),
]


@pytest.mark.parametrize(
    ("from_step", "again"),
    [
        (None, ["b"]),
        ("a", ["a", "c", "b", "d", "e"]),
        ("c", ["c", "b", "d", "e"]),
        ("d", ["b", "d", "e"]),  # of steps without events, the order of their commits tells
        ("e", ["b", "e"]),
    ],
)
def test_what_failed_and_what_came_since_is_done_again(
    from_step: str | None, again: list[str]
) -> None:
    assert steps_to_repeat(STEPS, from_step) == again


def test_nothing_failed_means_that_nothing_is_set_aside() -> None:
    assert steps_to_repeat([], None) == []
    assert steps_to_repeat(STEPS[:2], None) == []


@pytest.mark.parametrize("name", ["", "A", "a ", "x" * 256])
def test_a_step_that_is_not_there_is_refused_without_naming_others(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        steps_to_repeat(STEPS, name)
    assert str(refused.value) == "from_step is not the key of a step of this run"
    assert refused.value.errors == (
        {"location": "from_step", "message": "is not the key of a step of this run"},
    )


def test_what_can_be_tried_again() -> None:
    assert {Status.FAILED, Status.INCOMPLETE, Status.CANCELLED} == RETRYABLE
