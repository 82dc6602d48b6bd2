"""The plan of a run as a caller sees it: its subtasks, and what has become of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from redis.asyncio import Redis

from posthouse.control.journal import Journal, StepDone
from posthouse.errors import NotFound
from posthouse.journal.model import Outcome
from posthouse.runs.model import SUMMARY_FIELDS, RunRecord, record_from
from posthouse.storage import keys
from posthouse.storage.connect import available
from posthouse.workflows.dag import DrawnPlan, number_of, skipped_key, state_of, subtask_key
from posthouse.workflows.plan import NodeState, Subtask, advance


@dataclass(frozen=True)
class Node:
    """A subtask of a plan, where it is, and its run without input and output; None when there is none (yet)."""

    subtask: Subtask
    state: NodeState
    run: RunRecord | None = None


@dataclass(frozen=True)
class Progress:
    """A plan and its nodes in the plan's order."""

    plan: DrawnPlan
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class _Child:
    record: RunRecord
    state: NodeState


class Plans:
    """The plans of all runs, on one Redis client. Everything raises StorageUnavailable."""

    def __init__(self, redis: Redis, journal: Journal) -> None:
        self._redis = redis
        self._journal = journal

    async def of(self, run: RunRecord) -> Progress:
        """The newest plan of the run. Raises NotFound while there is none."""
        with available():
            pipe = self._redis.pipeline(transaction=False)
            pipe.hkeys(keys.journal(run.run_id))
            pipe.smembers(keys.tree(run.run_id))
            steps, tree = await pipe.execute()
        none = NotFound(f"the run {run.run_id} has no plan, or none yet")
        newest = max((step.decode() for step in steps), key=number_of, default="")
        if not number_of(newest):
            raise none
        members = [member.decode() for member in tree]
        outcomes, children = await self._read(
            run.run_id, [step.decode() for step in steps], members
        )
        if newest not in outcomes:  # a retry has set it aside, or the run was deleted, meanwhile
            raise none
        [drawn] = await self._journal.results(run.run_id, [StepDone(newest, outcomes[newest])])
        try:
            plan = DrawnPlan.model_validate(drawn)
        except ValidationError:  # a step of that name that is none
            raise none from None
        return progress_of(run, plan, outcomes, children)

    async def _read(
        self, run_id: str, steps: Sequence[str], members: Sequence[str]
    ) -> tuple[dict[str, Outcome], dict[str, _Child]]:
        """The steps that made a plan or a subtask's run, or skipped one; and the runs below."""
        wanted = [step for step in steps if number_of(step) or _is_of_a_subtask(step)]
        with available():
            pipe = self._redis.pipeline(transaction=False)
            pipe.hmget(keys.journal(run_id), wanted)
            for member in members:
                pipe.hmget(keys.run(member), list(SUMMARY_FIELDS))
                pipe.hstrlen(keys.run(member), "output")
            texts, *replies = await pipe.execute()
        outcomes = {
            step: Outcome.model_validate_json(text)
            for step, text in zip(wanted, texts, strict=True)
            if text is not None
        }
        rows = zip(members, replies[::2], replies[1::2], strict=True)
        found = {member: _child_from(member, values, size) for member, values, size in rows}
        return outcomes, {member: child for member, child in found.items() if child}


def progress_of(
    run: RunRecord,
    plan: DrawnPlan,
    outcomes: Mapping[str, Outcome],
    children: Mapping[str, _Child],
) -> Progress:
    """Where each subtask is, by the runs that the journal names; what an ended run had not begun, it never will."""
    runs: dict[str, _Child] = {}
    known: dict[str, NodeState] = {}
    for one in plan.subtasks:
        made = outcomes.get(subtask_key(one.id))
        if made is not None and (child := children.get(str(made.result))) is not None:
            runs[one.id], known[one.id] = child, child.state
        elif made is not None and made.result is not None:  # the run was made, and is gone
            known[one.id] = NodeState.FAILED
    states = advance(plan, known, plan.on_failure)
    if run.terminal:
        # Skipped is what was said to be; the others might have had what they needed.
        idle = {one for one in states if one not in known and skipped_key(one) not in outcomes}
        states |= dict.fromkeys(idle, NodeState.CANCELLED)
    nodes = (
        Node(one, states[one.id], runs[one.id].record if one.id in runs else None)
        for one in plan.subtasks
    )
    return Progress(plan, tuple(nodes))


def _is_of_a_subtask(step: str) -> bool:
    return step.startswith(subtask_key("")) and not step.endswith("/end")


def _child_from(run_id: str, values: list[bytes | None], size: int) -> _Child | None:
    fields = dict(zip(SUMMARY_FIELDS, values, strict=True))
    if not fields["status"]:
        return None
    record = record_from(run_id, fields, "summary")
    return _Child(record, state_of(record.status, size > 0))
