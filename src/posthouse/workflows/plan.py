"""The orchestrator's plan: a graph of subtasks, what is wrong with one, and what may begin when. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from posthouse.workflows.graph import CAPS, Caps, Graph, depths, twice, unknown_agents, wrong_in

_MOST_DEPENDENCIES = 1000
_SHOWN_PROBLEMS = 5

SubtaskId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,64}$")]
TaskText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]


class NodeState(StrEnum):
    """Where a subtask is. `ready` has all that it needs; the last five are the end of it."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    @property
    def begun(self) -> bool:
        """Whether it is past its start, or never will start."""
        return self not in (NodeState.WAITING, NodeState.READY)

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.begun and self is not NodeState.RUNNING

    @property
    def done(self) -> bool:
        """Whether it left a result for what depends on it, whole or partial."""
        return self in (NodeState.COMPLETED, NodeState.INCOMPLETE)

    @property
    def lost(self) -> bool:
        """Whether it ended without a result."""
        return self.ended and not self.done


class FailurePolicy(StrEnum):
    """What becomes of a subtask when one that it depends on has ended without a result."""

    SKIP = "skip"
    CONTINUE = "continue"


States: TypeAlias = Mapping[str, NodeState]


def _as_asked(schema: dict[str, Any]) -> None:
    """The schema as strict providers take it: every property required, no length of a text."""
    properties = schema.get("properties", {})
    schema["required"] = list(properties)
    for shape in properties.values():
        for word in ("default", "minLength", "maxLength"):
            shape.pop(word, None)


class Subtask(BaseModel):
    """One piece of work for one agent."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_as_asked)

    id: SubtaskId = Field(
        description="A short name that no other subtask has: lower-case letters, digits, _ and -."
    )
    agent: str = Field(min_length=1, max_length=64, description="The agent that does it.")
    task: TaskText = Field(
        description="What to do, complete in itself: the agent sees only this, the goal and the results"
        " of the subtasks that this one depends on. At most 4000 characters."
    )
    depends_on: tuple[SubtaskId, ...] = Field(
        default=(),
        max_length=_MOST_DEPENDENCIES,
        description="The ids of the subtasks whose results it needs; it begins when they have ended.",
    )

    @field_validator("depends_on")
    @classmethod
    def _each_once(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(ids))


class Plan(BaseModel):
    """Subtasks and what they depend on; there is no plan that is empty, has a cycle or an unknown dependency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agents: ClassVar[tuple[str, ...] | None] = None
    caps: ClassVar[Caps | None] = None

    subtasks: tuple[Subtask, ...]

    @property
    def by_id(self) -> dict[str, Subtask]:
        """The subtasks by their ids, in the plan's order."""
        return {one.id: one for one in self.subtasks}

    @property
    def graph(self) -> Graph:
        """What each subtask depends on."""
        return {one.id: one.depends_on for one in self.subtasks}

    @field_validator("subtasks", mode="before")
    @classmethod
    def _of_a_size(cls, given: object) -> object:
        """Before anything looks at one of them."""
        if not isinstance(given, list | tuple):
            return given
        if not given:
            raise _problem("the plan is empty: give at least one subtask")
        if cls.caps and len(given) > cls.caps.nodes:
            raise _problem(
                f"the plan has {len(given)} subtasks, at most {cls.caps.nodes} are allowed: "
                "join those that belong together"
            )
        return given

    @model_validator(mode="after")
    def _sound(self) -> Self:
        wrong = list(_problems(self))
        if wrong:
            details = [InitErrorDetails(type=_problem(said), loc=(), input=None) for said in wrong]
            raise ValidationError.from_exception_data("Plan", details)
        return self


def plan_model(agents: tuple[str, ...], caps: Caps = CAPS) -> type[Plan]:
    """The plan of these agents within these caps, as an agent's output model: its errors tell a planner what to mend.

    The same arguments give the same model.
    """
    return _model(agents, caps)


@lru_cache(maxsize=64)
def _model(agents: tuple[str, ...], caps: Caps) -> type[Plan]:
    def one_of(schema: dict[str, Any]) -> None:
        _as_asked(schema)
        schema["properties"]["agent"]["enum"] = list(agents)

    known = create_model("Subtask", __base__=Subtask, __doc__=Subtask.__doc__)
    known.model_config["json_schema_extra"] = one_of
    listed = Field(
        description="In any order.", json_schema_extra={"minItems": 1, "maxItems": caps.nodes}
    )
    made = create_model(
        "Plan",
        __base__=Plan,
        __doc__="Subtasks, and which of them need the results of others.",
        subtasks=(tuple[known, ...], listed),
    )
    made.agents, made.caps = agents, caps
    return made


def problem_of(error: ValidationError) -> str:
    """What is wrong with a plan, in one line for whoever wrote it: the first five things."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    said = "; ".join(_in_words(one["loc"], one["msg"]) for one in details[:_SHOWN_PROBLEMS])
    more = len(details) - _SHOWN_PROBLEMS
    return f"{said}; and {more} more" if more > 0 else said


def beginning(plan: Plan) -> dict[str, NodeState]:
    """The states of a plan of which nothing has begun."""
    return {one.id: NodeState.WAITING for one in plan.subtasks}


def ready(
    plan: Plan, states: States, policy: FailurePolicy = FailurePolicy.SKIP
) -> tuple[str, ...]:
    """Exactly those that have not begun and whose dependencies are all done, in the plan's order.

    Under "continue" a dependency that ended without a result counts too.
    """

    def settled(state: NodeState) -> bool:
        return state.done if policy is FailurePolicy.SKIP else state.ended

    return tuple(
        one.id
        for one in plan.subtasks
        if not _state(states, one.id).begun
        and all(settled(_state(states, before)) for before in one.depends_on)
    )


def spread(
    plan: Plan, states: States, policy: FailurePolicy = FailurePolicy.SKIP
) -> dict[str, NodeState]:
    """The states after failures have spread: what has not begun and depends on a lost one is skipped, and so on.

    Under "continue" nothing is.
    """
    after = {one.id: _state(states, one.id) for one in plan.subtasks}
    if policy is FailurePolicy.CONTINUE:
        return after
    for one in map(plan.by_id.__getitem__, order(plan)):
        if not after[one.id].begun and any(after[before].lost for before in one.depends_on):
            after[one.id] = NodeState.SKIPPED
    return after


def advance(
    plan: Plan, states: States, policy: FailurePolicy = FailurePolicy.SKIP
) -> dict[str, NodeState]:
    """The states after failures have spread, with `ready` where a subtask may begin."""
    after = spread(plan, states, policy)
    return after | dict.fromkeys(ready(plan, after, policy), NodeState.READY)


def finished(plan: Plan, states: States) -> bool:
    """Whether every subtask has come to an end."""
    return all(_state(states, one.id).ended for one in plan.subtasks)


def losses(plan: Plan, states: States, subtask_id: str) -> tuple[str, ...]:
    """What the subtask depends on directly that ended without a result."""
    before = plan.by_id[subtask_id].depends_on
    return tuple(one for one in before if _state(states, one).lost)


def descendants(plan: Plan, ids: Iterable[str]) -> frozenset[str]:
    """Everything that depends on one of these, directly or not."""
    reached = set(ids)
    found = set[str]()
    for one in map(plan.by_id.__getitem__, order(plan)):
        if not reached.isdisjoint(one.depends_on):
            reached.add(one.id)
            found.add(one.id)
    return frozenset(found)


def order(plan: Plan) -> tuple[str, ...]:
    """Every id, each after all that it depends on."""
    return tuple(one for level in levels(plan) for one in level)


def levels(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """The ids by how many subtasks must have ended before them in a row, from none on; for showing."""
    level = depths(plan.graph)
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for one in plan.subtasks:
        rows[level[one.id]].append(one.id)
    return tuple(map(tuple, rows))


def _state(states: States, subtask_id: str) -> NodeState:
    return states.get(subtask_id, NodeState.WAITING)


def _problem(said: str) -> PydanticCustomError:
    return PydanticCustomError("plan", "{said}", {"said": said})


def _problems(plan: Plan) -> Iterator[str]:
    if plan.agents is not None:
        agents = {one.id: one.agent for one in plan.subtasks}
        yield from unknown_agents(agents, plan.agents)
    if repeated := twice(one.id for one in plan.subtasks):
        yield repeated
    else:
        yield from wrong_in(plan.graph, plan.caps)


def _in_words(where: tuple[int | str, ...], said: str) -> str:
    place = ".".join(map(str, where))[:100]
    return f"{place}: {said[:300]}" if place else said[:300]
