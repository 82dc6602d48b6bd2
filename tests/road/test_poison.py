"""A run that ends every process that works on it: it has an end itself, and takes nobody along."""

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from posthouse import clock

pytestmark = [pytest.mark.guarantee("G1"), pytest.mark.timeout(60)]

API = "/api/v1"


def pids_in(note: Path) -> list[int]:
    return [int(line) for line in note.read_text().split()]


def is_listed(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def dead_letters(road) -> list[str]:
    answer = await road.http.get(f"{API}/dead-letters")
    assert answer.status_code == 200, answer.text
    return [run["run_id"] for run in answer.json()["runs"]]


async def test_a_poison_run_beside_innocents(road, tmp_path, long):
    note, own = tmp_path / "deaths", tmp_path / "steps"
    killed = road.said("was killed by SIGKILL")
    workers = {road.stack.pid("worker-1"), road.stack.pid("worker-2")}
    ways = [{"note": str(own), "seconds": [0.05, 0.05, 2.0, 0.05]}]
    ways += [{"note": str(own), "seconds": [0.2] * 10}] * ((19 if long else 7) - 1)
    innocents = [await road.start("innocent", way) for way in ways[:5]]
    poison = await road.start("poison", {"note": str(note)})
    innocents += [await road.start("innocent", way) for way in ways[5:]]
    await road.noted(note, 1)
    first_death = clock.monotonic()
    record = await road.ended(poison)
    took = clock.monotonic() - first_death
    assert (record["status"], record["error"]["code"]) == ("failed", "poisoned")
    print(f"\ndead-lettered {took:.1f} s after its first crash")
    assert took < 60
    assert await dead_letters(road) == [poison]
    ends = await asyncio.gather(*(road.ended(run_id) for run_id in innocents))
    assert {end["status"] for end in ends} == {"completed"}

    deaths = pids_in(note)
    assert len(deaths) == len(set(deaths)) == 3
    assert road.said("was killed by SIGKILL") - killed == 2  # the third was nobody's worker
    assert deaths[0] in workers

    if long:
        await the_same_again(road, note, poison)


async def the_same_again(road, note, poison):
    """A person may have it tried again, and it has another three deaths."""
    await road.healed()
    again = await road.http.post(f"{API}/runs/{poison}/retry")
    assert again.status_code == 202, again.text
    assert again.json()["status"] in {"pending", "running"}  # a free worker is quick
    assert await dead_letters(road) == []
    record = await road.ended(poison)
    assert (record["status"], record["error"]["code"]) == ("failed", "poisoned")
    assert await dead_letters(road) == [poison]
    assert len(pids_in(note)) == 6
    types = [event["type"] for event in await road.log(poison)]
    assert (types.count("run.failed"), types.count("run.retried")) == (2, 1)


async def working(road, note: Path) -> tuple[int, int]:
    """The ids of the process that does the suspect's step 1, and of its worker."""
    [line, *_] = await road.noted(note, 1, "began 1 ")
    pid, worker = (int(word) for word in line.split()[2:])
    assert worker in (road.stack.pid("worker-1"), road.stack.pid("worker-2"))
    return pid, worker


def name_of(road, worker: int) -> str:
    return next(name for name in ("worker-1", "worker-2") if road.stack.pid(name) == worker)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


@on_linux
async def test_a_suspect_ends_with_its_worker_and_begins_again_elsewhere(road, tmp_path):
    note = tmp_path / "steps"
    run_id = await road.start_suspect(note, [1.5, 0.0])
    pid, worker = await working(road, note)
    killed_at = road.hurt(name_of(road, worker))
    await road.gone(pid)
    assert clock.monotonic() - killed_at < 2
    assert (await road.ended(run_id))["status"] == "completed"
    began = await road.noted(note, 2, "began 1 ")
    assert len({line.split()[2] for line in began}) == 2
    assert len(await road.noted(note, 1, "ended 1 ")) == 1


@on_linux
@pytest.mark.guarantee("G7")
async def test_a_suspect_is_drained_like_any_run(road, tmp_path, redis):
    quick, slow = tmp_path / "quick", tmp_path / "slow"
    runs = {
        quick: await road.start_suspect(quick, [0.8, 0.0]),
        slow: await road.start_suspect(slow, [2.6, 0.0]),
    }
    places = {note: await working(road, note) for note in runs}
    for worker in {worker for _, worker in places.values()}:
        road.hurt(name_of(road, worker), signal.SIGTERM)
    for note in runs:
        await road.gone(places[note][0])
    assert (await redis.hget(f"run:{runs[slow]}", "crashes")) == b"2"
    for run_id in runs.values():
        assert (await road.ended(run_id))["status"] == "completed"
        resumed = [e for e in await road.log(run_id) if e["type"] == "run.resumed"]
        cleared = ["isolation"] if runs[slow] == run_id else []
        assert [event["data"]["reason"] for event in resumed] == ["timer", "drain", *cleared]
    assert (
        len(await road.noted(quick, 1, "began 1 ")) == 1
    )  # it ended within the drain, and was kept
    assert len(await road.noted(slow, 2, "began 1 ")) == 2


@on_linux
@pytest.mark.guarantee("G9")
async def test_a_cancelled_suspect_is_ended_at_once(road, tmp_path):
    note = tmp_path / "steps"
    run_id = await road.start_suspect(note, [30.0])
    pid, _ = await working(road, note)
    answer = await road.http.post(f"{API}/runs/{run_id}/cancel")
    cancelled_at = clock.monotonic()
    assert answer.json()["status"] == "cancelled"
    await road.gone(pid)
    assert clock.monotonic() - cancelled_at < 2
    assert (await road.log(run_id))[-1]["type"] == "run.cancelled"


@on_linux
async def test_signals_for_everybody_are_the_workers_to_act_on(road, tmp_path):
    note = tmp_path / "steps"
    run_id = await road.start_suspect(note, [0.5, 0.0])
    pid, worker = await working(road, note)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    listed = (await road.http.get(f"{API}/workers")).json()["workers"]
    assert worker in {each.get("pid") for each in listed}
    assert pid not in {each.get("pid") for each in listed}
    assert (await road.ended(run_id))["status"] == "completed"
    assert Counter(line.split()[2] for line in await road.noted(note, 1, "ended 1 "))[str(pid)] == 1
    async with asyncio.timeout(5):
        while is_listed(pid):  # not even a remnant of it is left
            await clock.sleep(0.02)
