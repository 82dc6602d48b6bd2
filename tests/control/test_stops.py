"""What a retry asks for anew where the budget stopped a run."""

from typing import Any

import pytest

from posthouse.control.journal import StepDone
from posthouse.control.retrying import steps_to_repeat
from posthouse.control.stops import stops
from posthouse.journal.model import Outcome

STOP = {"text": "", "finish_reason": "budget_exceeded", "limit": "tokens"}
SAID = {"text": "Well.", "finish_reason": "stop"}
CALLS = {"text": "", "finish_reason": "tool_calls"}
REFUSED = {"text": "No.", "problem": {"error": "budget_exceeded"}, "trusted": True}
FOREIGN = REFUSED | {"trusted": False}
SEEN = {"text": "seen", "trusted": False}
NO, YES = {"decision": "reject"}, {"decision": "approve", "value": {"tokens": 9}}


def journal(**results: Any) -> list[StepDone]:
    """Steps in order; a double underscore in a name is a slash, a single one a colon."""
    return [
        StepDone(
            name.replace("__", "/").replace("_", ":"),
            Outcome(seq=seq, epoch=1, time=1, result=result),
        )
        for seq, (name, result) in enumerate(results.items(), 1)
    ]


TURNS = journal(
    scout__turn_1=CALLS,
    scout__turn_1__tool_a=SEEN,
    writer__turn_1=SAID,
    scout__turn_2__budget=YES,
    scout__turn_2__budget_2=NO,
    scout__turn_2__summary={"text": "", "failure": "budget_exceeded"},
    scout__turn_2=STOP,
    team__budget=NO,
)
STOPPED = ["scout/turn:2/budget:2", "scout/turn:2/summary", "scout/turn:2"]
TOOLS = journal(
    scout__turn_1=CALLS,
    scout__turn_1__tool_a=SEEN,
    scout__turn_1__tool_b=REFUSED,
    scout__turn_1__tools__budget=NO,
    other__turn_2=SAID,
    scout__turn_2=SAID,
)


def test_the_turn_that_was_stopped_is_asked_anew_and_what_was_given_stays() -> None:
    assert steps_to_repeat(TURNS, None) == []
    assert steps_to_repeat(TURNS, None, afresh=True) == STOPPED


def test_what_a_person_refused_goes_with_the_step_that_is_done_again() -> None:
    assert steps_to_repeat(TURNS, "scout/turn:2") == [*STOPPED, "team/budget"]


def test_the_agents_work_since_a_call_that_was_not_allowed_is_done_again() -> None:
    expected = ["scout/turn:1/tool:b", "scout/turn:1/tools/budget", "scout/turn:2"]
    assert steps_to_repeat(TOOLS, None, afresh=True) == expected


@pytest.mark.parametrize(
    "step",
    [
        *journal(scout__turn_2={"finish_reason": "stop"}),
        *journal(scout__turn_1__tool_a=FOREIGN),
        *journal(plan=STOP),
        *journal(research=REFUSED),
        *journal(note="budget_exceeded"),
    ],
)
def test_nothing_else_is_a_stop(step: StepDone) -> None:
    assert stops([step]) == set()


def test_a_call_that_an_agent_went_on_without_is_no_stop() -> None:
    given = [one for one in TOOLS if not one.key.endswith("/budget")]
    assert "scout/turn:2" in stops(given)
    assert stops([*given, *journal(scout__turn_1__tools__budget=YES)]) == set()
