"""A plan that goes while it is looked at."""

from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from posthouse.control.journal import Journal
from posthouse.control.plan import Plans
from posthouse.errors import NotFound
from posthouse.ids import new_run_id
from posthouse.runs.model import RunRecord
from posthouse.storage import keys


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
