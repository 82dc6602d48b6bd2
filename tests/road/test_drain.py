"""Deploys: a run that is handed on again and again loses nothing, and nothing counts as its crash."""

import asyncio
import os
import signal
from collections import Counter

import pytest

from posthouse import clock

pytestmark = [pytest.mark.guarantee("G7"), pytest.mark.timeout(110)]


async def test_one_long_run_over_many_rolling_restarts(new_road, tmp_path, long):
    restarts = 6 if long else 3
    note, end = tmp_path / "steps", tmp_path / "end"
    given = {"note": str(note), "until": str(end)}
    # More than two, as the supervisor waits the longer the sooner one ends again.
    async with new_road(tmp_path, libraries="tests.road.perils", workers=restarts) as road:
        run_id = await road.start("patient", given)
        async with road.reading(run_id) as reader:
            claim = await reader.until("run.started")
            for restart in range(1, restarts + 1):
                road.hurt(road.worker_of(claim), signal.SIGTERM)
                claim = await reader.until("run.resumed", restart)
            end.touch()
            await reader.end()
        record, log = await road.ended(run_id), await road.log(run_id)
        assert (record["status"], record["epoch"]) == ("completed", restarts + 1)
        resumed = [event for event in log if event["type"] == "run.resumed"]
        assert [event["data"]["reason"] for event in resumed] == ["drain"] * restarts
        done = Counter(line.split()[1] for line in await road.noted(note, 1))
        assert set(done.values()) == {1}
        assert len(done) == record["output"]["steps"]
        async with asyncio.timeout(30):  # the last ones may still be on their way out
            while road.said("exit code 0") < restarts:  # noqa: ASYNC110 - it says so on its screen
                await asyncio.sleep(0.05)
        assert road.complaints() == []


async def test_a_step_longer_than_the_drain_is_begun_anew_elsewhere_at_once(road, tmp_path, redis):
    note = tmp_path / "steps"
    run_id = await road.start("innocent", {"note": str(note), "seconds": [0.0, 4.0, 0.0]})
    async with road.reading(run_id) as reader:
        owner = road.worker_of(await reader.until("run.started"))
        await road.noted(note, 1, "began 1 ")
        told_at = road.hurt(owner, signal.SIGTERM)
        claim = await reader.until("run.resumed")
        assert 1.0 < claim.at - told_at < 4.0  # the drain of 1.5 s, and no lease after it
        assert claim.data["data"]["reason"] == "drain"
        assert int(await redis.hget(f"run:{run_id}", "crashes") or 0) == 0
        await reader.end()
    assert (await road.ended(run_id))["status"] == "completed"
    assert len(await road.noted(note, 2, "began 1 ")) == 2
    assert len(await road.noted(note, 1, "began 0 ")) == 1


async def test_a_second_signal_ends_it_hard(road, tmp_path):
    note = tmp_path / "steps"
    run_id = await road.start("innocent", {"note": str(note), "seconds": [0.0, 3.0, 0.0]})
    async with road.reading(run_id) as reader:
        owner = road.worker_of(await reader.until("run.started"))
        await road.noted(note, 1, "began 1 ")
        told_at = road.hurt(owner, signal.SIGTERM)
        await road.logged(owner, '"stopping"', '"running": [1-9]')
        os.kill(road.stack.pid(owner), signal.SIGTERM)
        await road.heard(f"{owner} ended with exit code 1")
        assert clock.monotonic() - told_at < 1.2  # before the drain's limit
        await reader.end()
    assert (await road.ended(run_id))["status"] == "completed"


async def test_a_worker_that_drains_takes_nothing_more(road, tmp_path):
    note, later = tmp_path / "steps", tmp_path / "later"
    run_id = await road.start("innocent", {"note": str(note), "seconds": [1.0]})
    async with road.reading(run_id) as reader:
        owner = road.worker_of(await reader.until("run.started"))
        await road.noted(note, 1, "began 0 ")
        road.hurt(owner, signal.SIGTERM)
        await road.logged(owner, '"stopping"', '"running": [1-9]')
        given = {"note": str(later), "seconds": [0.0]}
        runs = [await road.start("innocent", given) for _ in range(5)]
        ends = await asyncio.gather(*(road.ended(each) for each in runs))
        assert {end["status"] for end in ends} == {"completed"}
        other = {"worker-1": "worker-2", "worker-2": "worker-1"}[owner]
        pids = {int(line.split()[2]) for line in await road.noted(later, 5, "began")}
        assert pids == {road.stack.pid(other)}
        await reader.end()
    assert (await road.ended(run_id))[
        "epoch"
    ] == 1  # its step ended within the drain, and was its last


async def test_a_second_signal_ends_it_also_while_redis_stands_still(road, tmp_path):
    note = tmp_path / "steps"
    run_id = await road.start("innocent", {"note": str(note), "seconds": [0.0, 3.0]})
    async with road.reading(run_id) as reader:
        owner = road.worker_of(await reader.until("run.started"))
    await road.noted(note, 1, "began 1 ")
    store, before = road.stack.pid("valkey"), road.said(f"{owner} ended with exit code 1")
    pid = road.stack.pid(owner)
    os.kill(store, signal.SIGSTOP)
    try:
        road.hurt(owner, signal.SIGTERM)
        await road.logged(owner, '"stopping"', f"-{pid}-")
        os.kill(pid, signal.SIGTERM)
        await road.heard(f"{owner} ended with exit code 1", before + 1)
    finally:
        os.kill(store, signal.SIGCONT)
    assert (await road.ended(run_id))["status"] == "completed"
    log = await road.log(run_id)
    assert [e["data"]["reason"] for e in log if e["type"] == "run.resumed"] == ["crash"]
