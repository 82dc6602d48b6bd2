"""A plan for a goal, where one is asked for: research on two aspects of it, then an analysis of both."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from posthouse.embedded.standin.sample import Json, Schema
from posthouse.embedded.standin.words import telling

PlanFault: TypeAlias = Literal[
    "cycle",
    "duplicate",
    "empty",
    "self_dependency",
    "too_many",
    "unknown_agent",
    "unknown_dependency",
]

_FIELDS = {"id", "agent", "task", "depends_on"}
_BETWEEN = re.compile(
    r"[,;:?!]\s+|\.\s+|\s+(?:and|or|versus|vs\.?|when|while|with|against)\s+", re.IGNORECASE
)
_ASIDE = re.compile(r"[^.?!]*\bask (?:me|the (?:user|person))\b[^.?!]*[.?!]?", re.IGNORECASE)
_CHARACTERS = 300
_TOO_MANY = 1000


@dataclass(frozen=True)
class PlanForm:
    """What a plan may hold: the agents, and how many subtasks."""

    agents: tuple[str, ...]
    most: int


def plan_form(schema: Schema) -> PlanForm | None:
    """What the schema asks for, when it asks for a plan."""
    listed = _inside(schema, schema, "properties", "subtasks")
    items = _inside(schema, listed, "items")
    fields = _inside(schema, items, "properties")
    if not fields.keys() >= _FIELDS:
        return None
    agents = _inside(schema, fields, "agent").get("enum")
    most = listed.get("maxItems")
    names = [one for one in agents if isinstance(one, str)] if isinstance(agents, list) else []
    return PlanForm(tuple(names) or ("researcher",), most if isinstance(most, int) else 50)


def plan(goal: str, form: PlanForm) -> Json:
    """The plan: the same for the same goal and form."""
    return {"subtasks": [dict(one) for one in _subtasks(goal, form)[: form.most]]}


def faulty_plan(goal: str, form: PlanForm, fault: PlanFault) -> Json:
    """The plan with this fault in it."""
    first, second, last = _subtasks(goal, form)
    match fault:
        case "cycle":
            first["depends_on"] = [last["id"]]
        case "duplicate":
            second["id"] = first["id"]
        case "empty":
            return {"subtasks": []}
        case "self_dependency":
            first["depends_on"] = [first["id"]]
        case "unknown_agent":
            first["agent"] = "nobody"
        case "unknown_dependency":
            last["depends_on"] = ["nowhere"]
        case "too_many":
            return {"subtasks": [first | {"id": f"one-{n}"} for n in range(_TOO_MANY)]}
    return {"subtasks": [first, second, last]}


def _subtasks(goal: str, form: PlanForm) -> list[dict[str, Json]]:
    one, other = _aspects(goal)
    aside = _ASIDE.search(goal)
    asking = f" {aside[0].strip()}" if aside else ""
    seeker = _first_of(form.agents, "researcher")
    thinker = _first_of(form.agents, "analyst", "writer", "researcher")
    compare = f"Compare what was found, where it agrees and what is missing: {one}; {other}."
    return [
        _subtask("first-aspect", seeker, f"Find out: {one}.{asking}"),
        _subtask("second-aspect", seeker, f"Find out: {other}."),
        _subtask("comparison", thinker, compare, "first-aspect", "second-aspect"),
    ]


def _subtask(subtask_id: str, agent: str, task: str, *depends_on: str) -> dict[str, Json]:
    return {"id": subtask_id, "agent": agent, "task": task, "depends_on": list(depends_on)}


def _first_of(agents: tuple[str, ...], *wanted: str) -> str:
    return next((name for name in wanted if name in agents), agents[0])


def _aspects(goal: str) -> tuple[str, str]:
    """The goal in two parts; where it has only one, that and what can go wrong with it."""
    line = " ".join(_ASIDE.sub(" ", goal).split()) or " ".join(goal.split())
    cuts = [
        cut
        for cut in _BETWEEN.finditer(line)
        if telling(line[: cut.start()]) and telling(line[cut.end() :])
    ]
    if not cuts:
        whole = _bare(line) or "the goal"
        return whole, f"what can go wrong: {whole}"
    middle = min(cuts, key=lambda cut: abs(len(line) - cut.start() - cut.end()))
    return _bare(line[: middle.start()]), _bare(line[middle.end() :])


def _bare(part: str) -> str:
    return part.strip(" .,;:?!\"'")[:_CHARACTERS]


def _inside(root: Schema, schema: Mapping[str, Json], *names: str) -> Mapping[str, Json]:
    """The schema under these names, references followed; empty where there is none."""
    found: Mapping[str, Json] = schema
    for name in names:
        child = found.get(name)
        found = child if isinstance(child, dict) else {}
        found = _referred(root, found)
    return found


def _referred(root: Schema, schema: Mapping[str, Json]) -> Mapping[str, Json]:
    ref = schema.get("$ref")
    definitions = root.get("$defs")
    if not isinstance(ref, str) or not isinstance(definitions, dict):
        return schema
    target = definitions.get(ref.removeprefix("#/$defs/"))
    return target if isinstance(target, dict) else {}
