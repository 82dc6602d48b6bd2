"""Which steps a retry does again."""

import pytest

from posthouse.control.journal import StepDone
from posthouse.control.retrying import RETRYABLE, Below, steps_to_repeat, with_children
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


def made(key: str, child: str, seq: int) -> StepDone:
    return StepDone(key, Outcome(seq=seq, epoch=1, time=1, result=child))


def below(run_id: str, parent: str, key: str, status: str, has_output: bool = False) -> Below:
    return Below(run_id, parent, key, status, has_output)


ROOT = [
    made("subtask:a", "A", 1),
    made("subtask:b", "B", 2),
    made("subtask:a/end", "", 3),
    made("subtask:b/end", "", 4),
    made("subtask:c", "C", 5),
    made("subtask:d", "D", 6),
    made("writer/turn:1", "", 7),
]
BELOW = [
    below("A", "root", "subtask:a", "completed", True),
    below("B", "root", "subtask:b", "failed"),
    below("C", "root", "subtask:c", "incomplete", True),
    below("D", "root", "subtask:d", "cancelled"),
    below("former B", "root", "subtask:b", "failed"),
    below("E", "B", "deeper", "failed"),
]


@pytest.mark.parametrize(
    ("from_step", "steps", "children"),
    [
        (None, (), ["B", "D"]),
        ("writer/turn:1", ("writer/turn:1",), ["B", "D"]),
        # The ends of children that stay are kept, but for those that are tried again.
        (
            "subtask:a/end",
            ("subtask:b/end", "subtask:c", "subtask:d", "writer/turn:1"),
            ["B"],
        ),
        # Children of steps that are done again are made anew.
        (
            "subtask:b",
            ("subtask:b", "subtask:b/end", "subtask:c", "subtask:d", "writer/turn:1"),
            [],
        ),
    ],
)
def test_children_without_a_result_are_tried_again_where_their_step_stays(
    from_step: str | None, steps: tuple[str, ...], children: list[str]
) -> None:
    again, lower = with_children("root", ROOT, steps_to_repeat(ROOT, from_step), BELOW)
    assert again == steps
    assert [child.run_id for child in lower] == children


def test_a_child_that_is_gone_is_made_anew_and_one_below_which_one_got_lost_is_tried_again() -> (
    None
):
    def end(key: str, child: str) -> StepDone:
        found = {"run_id": child, "status": "failed", "output": None, "error": {"code": "lost"}}
        return StepDone(f"{key}/end", Outcome(seq=9, epoch=1, time=1, result=found))

    done = [made("a", "A", 1), made("b", "B", 2), end("a", "A"), end("b", "B")]
    there = [below("A", "root", "a", "failed")]
    again, lower = with_children("root", done, steps_to_repeat(done, None), there)
    assert again == ("b", "b/end")
    assert [child.run_id for child in lower] == ["A"]


def test_a_part_is_a_result() -> None:
    statuses = [("completed", True), ("incomplete", True), ("incomplete", False), ("failed", False)]
    found = [below("x", "y", "z", status, has).has_result for status, has in statuses]
    assert found == [True, True, False, False]
