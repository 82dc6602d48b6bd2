"""A plan that goes while it is looked at, and one of which a run is gone."""

from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from posthouse.control.journal import Journal
from posthouse.control.plan import Plans, progress_of
from posthouse.errors import NotFound
from posthouse.ids import new_run_id
from posthouse.journal.model import Outcome
from posthouse.runs.model import RunRecord, Status
from posthouse.storage import keys
from posthouse.workflows.dag import DrawnPlan
from posthouse.workflows.plan import Subtask


class Fading(Plans):
    """Between its two looks somebody retries the run from before the plan, or deletes it."""

    async def _read(self, run_id: str, *rest: Any) -> Any:
        await self._redis.delete(keys.journal(run_id))
        return await super()._read(run_id, *rest)


async def test_a_plan_that_is_set_aside_meanwhile_is_none(redis: Redis) -> None:
    run_id = new_run_id()
    await redis.hset(keys.journal(run_id), "plan", orjson.dumps({"seq": 1, "result": {}}))
    run = RunRecord.model_construct(run_id=run_id, root=run_id)
    with pytest.raises(NotFound):
        await Fading(redis, Journal(redis)).of(run)


@pytest.mark.parametrize("status", [Status.RUNNING, Status.INCOMPLETE])
def test_a_subtask_whose_run_is_gone_has_failed(status: Status) -> None:
    drawn = DrawnPlan(
        subtasks=(
            Subtask(id="a", agent="researcher", task="Look."),
            Subtask(id="b", agent="writer", task="Write.", depends_on=("a",)),
        )
    )
    run = RunRecord.model_construct(run_id="r", root="r", status=status)
    made = {"subtask:a": Outcome(seq=1, epoch=1, time=1, result=new_run_id())}
    first, second = progress_of(run, drawn, made, {}).nodes
    assert (first.state, first.run) == ("failed", None)
    assert second.state == ("skipped" if status is Status.RUNNING else "cancelled")
