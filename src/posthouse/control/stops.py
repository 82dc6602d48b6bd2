"""Where the budget stopped the agents of an ended run, so that a retry asks for those steps anew."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from posthouse.control.journal import StepDone
from posthouse.errors import RunCode
from posthouse.inputs.model import Decision

# What agents call their steps: `<agent>/turn:<number>`, and what is done in a turn.
_TURN = re.compile(r"(?P<agent>.*)/turn:(?P<number>\d+)(?P<within>/.*)?")
_QUESTION = re.compile(r"(?P<step>.*)/budget(:\d+)?")


def stops(done: Iterable[StepDone]) -> set[str]:
    """The turns and tool calls that the budget did not allow, and what followed from them in their agent's work."""
    results = {step.key: step.outcome.result for step in done}
    found = {key for key, result in results.items() if _is_stop(key, result, results)}
    closed: dict[str, int] = {}
    for agent, number in map(_turn, found):
        closed[agent] = min(number, closed.get(agent, number))
    return found | {
        key
        for key in results
        if _TURN.fullmatch(key) and _turn(key)[1] > closed.get(_turn(key)[0], _turn(key)[1])
    }


def refusals(done: Iterable[StepDone], again: Collection[str]) -> set[str]:
    """What was refused for the steps that are done again: by a person who gave no more, or of a turn's summary."""
    turns = {key.rpartition("/tool:")[0] for key in again if "/tool:" in key}
    return {step.key for step in done if _refused(step.key, step.outcome.result, again, turns)}


def _refused(key: str, result: Any, again: Collection[str], turns: Collection[str]) -> bool:
    match result:
        case {"decision": Decision.REJECT} if asked := _QUESTION.fullmatch(key):
            step = asked["step"]
            turn, _, last = step.rpartition("/")
            return step in again or (last == "tools" and turn in turns) or turn in again
        case {"failure": RunCode.BUDGET_EXCEEDED}:
            return key.removesuffix("/summary") in again
        case _:
            return False


def _is_stop(key: str, result: Any, results: Mapping[str, Any]) -> bool:
    turn = _TURN.fullmatch(key)
    match result:
        case {"finish_reason": RunCode.BUDGET_EXCEEDED}:
            return turn is not None and turn["within"] is None
        case {"problem": {"error": RunCode.BUDGET_EXCEEDED}, "trusted": True} if turn:
            # Where a person gave more, the agent went on without this call.
            more = results.get(f"{turn['agent']}/turn:{turn['number']}/tools/budget")
            return not (isinstance(more, dict) and more.get("decision") == Decision.APPROVE)
        case _:
            return False


def _turn(key: str) -> tuple[str, int]:
    turn = _TURN.fullmatch(key)
    assert turn is not None
    return turn["agent"], int(turn["number"])
