"""The fleet's routes: queue, workers, runs that were given up."""

import asyncio
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel

from api_app.main import build_app
from posthouse.storage import keys
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

RUNS = "/api/v1/runs"
DEAD = "/api/v1/dead-letters"


class Given(BaseModel):
    pass


async def body(ctx: RunContext, given: Given) -> Given:
    return given


FLOW = Workflow("flow", 1, "", Given, Given, body)


class Deaths:
    """Stands for a process of its own that dies at once, unless it is told not to."""

    async def carry(self, run: object) -> bool:
        return False


@pytest.fixture
async def api(settings, redis, serve):
    async with serve(build_app(settings, {"flow": FLOW})) as serving:
        yield serving


async def submitted(api) -> str:
    answer = await api.client.post(RUNS, json={"workflow": "flow", "input": {}})
    return answer.json()["run_id"]


async def test_an_empty_fleet_is_no_error(api):
    assert (await api.client.get("/api/v1/queue")).json() == {
        "new": 0, "continuing": 0, "held": 0, "first_waited_ms": 0, "taken_per_second": 0.0,
        "memory_percent": 0,
    }  # fmt: skip
    assert (await api.client.get("/api/v1/workers")).json() == {"workers": []}
    assert (await api.client.get(DEAD)).json() == {"runs": [], "next_cursor": None}


async def test_the_queue_says_how_much_waits(api, redis):
    first = await submitted(api)
    await submitted(api)
    seconds, _ = await redis.time()
    await redis.hset(keys.run(first), "updated_at", (seconds - 60) * 1000)
    state = (await api.client.get("/api/v1/queue")).json()
    assert (state["new"], state["continuing"]) == (2, 0)
    assert 59_000 <= state["first_waited_ms"] <= 70_000


async def test_a_worker_is_shown_while_it_lives_and_for_a_while_after(api, valkey_url):
    async with LocalFleet(valkey_url, [FLOW], lease_seconds=0.6) as fleet:
        fleet.worker(slots=7)
        run_id = await submitted(api)
        await api.client.get(f"{RUNS}/{run_id}/wait")
        async with asyncio.timeout(10):
            while not (workers := (await api.client.get("/api/v1/workers")).json()["workers"]):
                pass
        [worker] = workers
        names = ("alive", "host", "pid", "slots", "draining", "workflows")
        shown = {name: worker[name] for name in names}
        assert shown == {
            "alive": True, "host": "localhost", "pid": 0, "slots": 7, "draining": False,
            "workflows": ["flow:1"],
        }  # fmt: skip
        for name in ("seen_at", "started_at"):
            assert abs((datetime.now(UTC) - datetime.fromisoformat(worker[name])).seconds) < 60
        assert (await api.client.get("/api/v1/queue")).json()["taken_per_second"] > 0
    async with asyncio.timeout(10):
        while worker["alive"]:
            [worker] = (await api.client.get("/api/v1/workers")).json()["workers"]
    assert (worker["slots"], worker["workflows"]) == (None, [])


async def test_runs_that_were_given_up_are_listed_and_can_be_tried_again(api, redis, valkey_url):
    ids = [await submitted(api) for _ in range(3)]
    for run_id in ids:
        await redis.hset(keys.run(run_id), "crashes", 2)
    async with LocalFleet(valkey_url, [FLOW], isolation=Deaths()) as fleet:
        fleet.worker()
        for run_id in ids:
            record = (await api.client.get(f"{RUNS}/{run_id}/wait")).json()
            assert (record["status"], record["error"]["code"]) == ("failed", "poisoned")
        page = (await api.client.get(DEAD, params={"limit": 2})).json()
        rest = (
            await api.client.get(DEAD, params={"limit": 2, "cursor": page["next_cursor"]})
        ).json()
        assert [run["run_id"] for run in page["runs"] + rest["runs"]] == ids[::-1]
        assert rest["next_cursor"] is None
        assert {run["error"]["code"] for run in page["runs"]} == {"poisoned"}

        # No suspect any more, so that it works with the others again, and completes.
        assert (await api.client.post(f"{RUNS}/{ids[0]}/retry")).status_code == 202
        assert (await api.client.get(f"{RUNS}/{ids[0]}/wait")).json()["status"] == "completed"
    await api.client.delete(f"{RUNS}/{ids[1]}")
    left = (await api.client.get(DEAD)).json()["runs"]
    assert [run["run_id"] for run in left] == [ids[2]]


async def test_a_wrong_page_is_a_400(api):
    for query in ("cursor=x", "limit=0", "limit=101", "limit=x", "limit=1&limit=1"):
        response = await api.client.get(f"{DEAD}?{query}")
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request"), query
