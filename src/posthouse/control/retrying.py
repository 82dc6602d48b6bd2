"""What a retry does again: steps of the ended run, and those runs below it that ended without a result."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import orjson
from redis.asyncio import Redis

from posthouse.control.journal import Journal, StepDone
from posthouse.control.stops import refusals, stops
from posthouse.errors import InvalidRequest, RunCode
from posthouse.runs.model import TERMINAL, Status
from posthouse.storage import keys
from posthouse.storage.connect import available

RETRYABLE = TERMINAL - {Status.COMPLETED}


@dataclass(frozen=True)
class Below:
    """A run below the one that is tried again; `step` is the key in its parent's journal that made it.

    `code` says why it did not complete.
    """

    run_id: str
    parent: str
    step: str
    status: str
    has_output: bool
    code: str = ""

    @property
    def stopped(self) -> bool:
        """Whether it ended at the limit of the budget."""
        return self.code == RunCode.BUDGET_EXCEEDED

    @property
    def has_result(self) -> bool:
        """Whether it ended with something that its parent goes on with; a part is enough."""
        return self.status == Status.COMPLETED or (
            self.status == Status.INCOMPLETE and self.has_output
        )


@dataclass(frozen=True)
class Again:
    """The steps that are done again, and the children, parents first, each with those of its own."""

    steps: tuple[str, ...]
    children: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Retries:
    """Looks at whole trees, on one Redis client. Everything raises StorageUnavailable."""

    def __init__(self, redis: Redis, journal: Journal) -> None:
        self._redis = redis
        self._journal = journal

    async def of(self, run_id: str, from_step: str | None, *, afresh: bool = False) -> Again:
        """What a retry of the ended root does again; `afresh` also what the budget stopped, in all runs below too.

        Raises InvalidRequest when the run has no such step.
        """
        done = await self._journal.steps(run_id)
        chosen = steps_to_repeat(done, from_step, afresh=afresh)
        below = await self._below(run_id)
        if afresh:
            # There may be more to have of these than the part that they ended with.
            below = [replace(one, has_output=one.has_output and not one.stopped) for one in below]
        steps, level = with_children(run_id, done, chosen, below)
        again: dict[str, tuple[str, ...]] = {run_id: steps}
        while level:
            journals = await self._journal.several([child.run_id for child in level])
            deeper: list[Below] = []
            for child, of_child in zip(level, journals, strict=True):
                failed = steps_to_repeat(of_child, None, afresh=afresh)
                own, lower = with_children(child.run_id, of_child, failed, below)
                if child.stopped and len(own) == len(of_child):
                    # Nothing of it stays, so it is made anew, of what its parent knows by then.
                    again[child.parent] += (child.step, _end_of(child.step))
                    continue
                again[child.run_id] = own
                deeper += lower
            level = deeper
        return Again(again.pop(run_id), tuple(again.items()))

    async def _below(self, root: str) -> list[Below]:
        with available():
            members = await self._redis.smembers(keys.tree(root))  # type: ignore[misc]
            ids = sorted(member.decode() for member in members)
            if not ids:
                return []
            pipe = self._redis.pipeline(transaction=False)
            for run_id in ids:
                pipe.hmget(keys.run(run_id), ["parent", "parent_step", "status", "error"])
                pipe.hstrlen(keys.run(run_id), "output")
            replies = await pipe.execute()
        rows = zip(ids, replies[::2], replies[1::2], strict=True)
        return [_below_from(run_id, fields, length) for run_id, fields, length in rows]


def steps_to_repeat(
    steps: Iterable[StepDone], from_step: str | None, *, afresh: bool = False
) -> list[str]:
    """The keys of those that failed, and of everything committed since `from_step`, that one included.

    With them goes what a person would not give for them; `afresh` also what the budget stopped.
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
    again = stops(done) if afresh else set()
    again |= {
        step.key
        for step in done
        if step.outcome.error is not None or (since is not None and _moment(step) >= since)
    }
    again |= refusals(done, again)
    return [step.key for step in done if step.key in again]


def with_children(
    run_id: str, done: Sequence[StepDone], chosen: Sequence[str], below: Sequence[Below]
) -> tuple[tuple[str, ...], list[Below]]:
    """Of the chosen steps of a run those that are really done again, and its children that go back to pending.

    A child stays the run's while the step that made it stays. What such a child ended with is not asked for again;
    when it has no result, it is tried again itself. One that is gone is made anew.
    """
    lost = _lost(done, {child.run_id for child in below})
    chosen = [step.key for step in done if step.key in chosen or step.key in lost]
    made = {step.key: step.outcome.result for step in done}
    staying = [
        child
        for child in below
        if child.parent == run_id
        and made.get(child.step) == child.run_id
        and child.step not in chosen
    ]
    kept = {_end_of(child.step) for child in staying if child.has_result}
    steps = tuple(key for key in chosen if key not in kept)
    return steps, [child for child in staying if not child.has_result]


def _lost(done: Iterable[StepDone], there: Collection[str]) -> set[str]:
    """The ends of children that are gone, and the steps that made these."""
    keys: set[str] = set()
    for step in done:
        match step.outcome.result:
            case {"run_id": str(child), "error": {"code": RunCode.LOST}} if child not in there:
                keys |= {step.key, step.key.removesuffix("/end")}
    return keys


def _end_of(step: str) -> str:
    return f"{step}/end"


def _below_from(run_id: str, fields: list[bytes | None], length: int) -> Below:
    parent, end, status, error = ((value or b"").decode() for value in fields)
    code = str((orjson.loads(error or "null") or {}).get("code", ""))
    return Below(run_id, parent, end.removesuffix("/end"), status, length > 0, code)


def _moment(step: StepDone) -> tuple[int, int]:
    """When it was committed; steps without events of their own share a seq."""
    return step.outcome.seq, step.outcome.ordinal
