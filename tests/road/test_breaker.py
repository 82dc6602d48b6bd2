"""A model whose endpoint dies under two workers: its runs wait without a worker, keep their tries, and go on."""

import asyncio
from contextlib import AsyncExitStack

DEAD = {"type": "status", "status": 500, "times": 0}
RUNS = 4


async def test_runs_wait_for_a_dead_endpoint_and_go_on_by_themselves(road, topic, redis):
    await road.model.tell(DEAD)
    async with AsyncExitStack() as readers:
        runs = [await road.submit(topic(), "standard") for _ in range(RUNS)]
        streams = [await readers.enter_async_context(road.reading(run_id)) for run_id in runs]
        # The first one that tries again opens the breaker; the next one finds it open.
        waiting = await first(stream.until("run.waiting") for stream in streams)
        assert waiting.data["data"] == {"wait_reason": "model"}
        asked = len(await road.model.requests())
        assert asked <= 2 * RUNS

        late = await road.submit(topic(), "standard")
        stream = await readers.enter_async_context(road.reading(late))
        await stream.until("run.waiting")
        assert len(await road.model.requests()) == asked
        record = (await road.http.get(f"/api/v1/runs/{late}")).json()
        assert (record["status"], record["wait_reason"]) == ("running", "model")

        await road.model.reset()
        records = await asyncio.gather(*(road.ended(run_id) for run_id in [*runs, late]))
    assert [record["status"] for record in records] == ["completed"] * (RUNS + 1)
    assert await redis.keys("endpoint:*") == []
    resumed = [
        event["data"]["reason"]
        for run_id in [*runs, late]
        for event in await road.log(run_id)
        if event["type"] == "run.resumed"
    ]
    assert len(resumed) >= 2
    assert set(resumed) == {"model"}
    await road.logged("worker", '"breaker_opened"', '"127.0.0.1:')
    await road.logged("worker", '"breaker_closed"')


async def first(calls):
    """The result of the call that is done first; the others are let go."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    return done.pop().result()
