"""Rolling deploys: what a worker cannot read it leaves for one that can, and nobody destroys it."""

from collections import Counter
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from posthouse import clock
from posthouse.errors import StorageUnavailable
from posthouse.events.types import Draft, RunCreated
from posthouse.ids import new_run_id
from posthouse.runs.transitions import Acceptance, Transitions
from posthouse.storage import keys

pytestmark = [pytest.mark.guarantee("G1"), pytest.mark.timeout(90)]

API = "/api/v1"
OLD, NEW = "tests.road.perils", "tests.road.perils_two"


@pytest.fixture(scope="module")
async def deploying(new_road, tmp_path_factory):
    """The API and one worker are old, the other worker is new."""

    def adapt(process):
        libraries = NEW if process.name == "worker-2" else OLD
        return replace(process, env={**process.env, "POSTHOUSE_LIBRARIES": libraries})

    folder = tmp_path_factory.mktemp("deploying")
    async with new_road(folder, adapt=adapt) as road, Redis.from_url(road.redis_url) as redis:
        yield road, redis


async def until(condition):
    """Returns when it is so."""
    while not await condition():
        await clock.sleep(0.05)


async def test_a_worker_leaves_what_it_does_not_know_for_one_that_does(deploying, tmp_path):
    note, (road, _) = tmp_path / "steps", deploying
    given = {"note": str(note), "seconds": [0.0, 0.1, 0.0]}
    runs = [await road.start("innocent", given) for _ in range(20)]
    for run_id in runs:
        record, log = await road.ended(run_id), await road.log(run_id)
        assert (record["status"], record["version"]) == ("completed", 1)
        assert [road.worker_of(e) for e in log if e["type"] == "run.started"] == ["worker-1"]
    # While only the new worker is there, an old run waits.
    road.hurt("worker-1")
    run_id = await road.start("innocent", given)
    await road.healed()
    assert (await road.ended(run_id))["status"] == "completed"
    began = Counter(line for line in await road.noted(note, 1, "began"))
    assert not any(line.startswith("began -1") for line in began)
    assert road.complaints() == []


async def test_a_record_that_nobody_can_read_yet_is_left_alone(deploying, tmp_path):
    note, (road, redis) = tmp_path / "steps", deploying
    way = {"note": str(note), "seconds": [0.0, 0.0], "nap_before": 1, "nap_seconds": 1.0}
    run_id = await road.start("innocent", way)
    key = keys.run(run_id)

    async def parked():
        return await redis.hget(key, "wait_reason") == b"timer"

    await until(parked)
    await redis.hset(key, mapping={"v": 99, "status": "reposing", "novelty": "yes"})
    before = await everything(redis, run_id)
    answer = await road.http.get(f"{API}/runs/{run_id}")
    assert (answer.status_code, answer.json()["retryable"]) == (503, True), answer.text
    for path in ("runs", "runs?status=running", "queue", "workers"):
        assert (await road.http.get(f"{API}/{path}")).status_code == 200
    for act in ("cancel", "retry"):
        answer = await road.http.post(f"{API}/runs/{run_id}/{act}")
        assert answer.status_code == 503, answer.text
    assert (await road.http.delete(f"{API}/runs/{run_id}")).status_code == 503
    # Its timer rings, its moment in `due` comes, and every worker sweeps.
    await redis.zadd(keys.DUE, {run_id: 1})
    await clock.sleep(3)
    assert await everything(redis, run_id) == before
    await redis.hset(key, mapping={"v": 1, "status": "running"})
    await redis.zadd(keys.DUE, {run_id: 1})
    assert (await road.ended(run_id))["status"] == "completed"


async def test_a_queued_record_that_is_too_new_rests_until_somebody_can_read_it(valkey_url):
    async with Redis.from_url(valkey_url) as redis:
        await redis.flushall()
        transitions = Transitions(redis)
        created = Draft(event=RunCreated(workflow="echo", version=1))
        run = Acceptance(new_run_id(), "default", "echo", 1, "{}", "{}", created, 60_000)
        await transitions.accept(run)
        await redis.hset(keys.run(run.run_id), "v", 99)
        readable = [("echo", 1)]
        assert await transitions.claim("w", "c1", 1000, 10, readable) == []
        before = await everything(redis, run.run_id)
        for _ in range(3):
            await redis.zadd(keys.DUE, {run.run_id: 1})
            await transitions.sweep(1000, may_end_leases=True, readable=readable)
            assert await redis.zcard(keys.QUEUE) == 0  # it does not go round and round
        assert await everything(redis, run.run_id) == before
        for end in (transitions.cancel, transitions.delete):
            with pytest.raises(StorageUnavailable, match="newer"):
                await end(run.run_id, "default")
        await redis.hset(keys.run(run.run_id), "v", 1)
        await transitions.sweep(1000, may_end_leases=True, readable=readable)
        [claimed] = await transitions.claim("w", "c2", 1000, 10, readable)
        assert claimed.run_id == run.run_id


async def everything(redis, run_id):
    """All that is stored of a run."""
    found = {key: await redis.dump(key) for key in await redis.keys(f"run:{run_id}*")}
    return found, await redis.exists(keys.index("default"))
