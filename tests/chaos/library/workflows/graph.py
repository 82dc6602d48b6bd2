"""The workflow `graph`: carries out the plan that it is given; its output is what every subtask said."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from posthouse.workflows import dag
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow
from posthouse.workflows.orchestration import SubtaskResult
from posthouse.workflows.plan import Plan, Subtask


class Graph(BaseModel):
    """A plan, the seed of the answers, and what each subtask takes at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    seed: int
    pace_ms: int = 20


class Walked(BaseModel):
    """What each subtask said."""

    model_config = ConfigDict(frozen=True)

    said: dict[str, str]


class Leaf(BaseModel):
    """A subtask, and what those that it depends on said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seed: int
    pace_ms: int
    given: tuple[str, ...] = ()


@workflow("graph", version=1)
async def graph(ctx: RunContext, request: Graph) -> Walked:
    """Each subtask is a run of `leaf`."""

    def assign(subtask: Subtask, results: Mapping[str, SubtaskResult]) -> dag.Work:
        given = tuple(results[one].text for one in subtask.depends_on)
        leaf = Leaf(name=subtask.id, seed=request.seed, pace_ms=request.pace_ms, given=given)
        return dag.Work("leaf", leaf)

    await dag.announce(ctx, request.plan)
    ends = await dag.run(ctx, request.plan, assign)
    return Walked(said={one: end.result.text for one, end in ends.items()})
