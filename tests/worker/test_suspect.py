"""The process that carries a suspect: a real one, under a fleet of this test's own."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from posthouse import clock
from posthouse.runs.model import RunRecord, Status
from posthouse.storage import keys
from posthouse.testing.fleet import LocalFleet
from tests.road.perils.workflows.innocent import innocent
from tests.road.perils.workflows.poison import poison
from worker_app.own_process import OwnProcess

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, valkey_url: str, tmp_path: Path) -> None:
    """What a process of its own finds in the environment; it shares that of its worker."""
    for name, value in {
        "REDIS_URL": valkey_url,
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "POSTHOUSE_LIBRARIES": "tests.road.perils",
        "POSTHOUSE_LEASE_SECONDS": "1",
        "PYTHONPATH": os.pathsep.join(["src", "."]),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(Path(__file__).parents[2])


@asynccontextmanager
async def fleet_of(
    url: str, silent_seconds: float = 30.0, lease_seconds: float = 1.0
) -> AsyncIterator[LocalFleet]:
    isolation = OwnProcess(silent_seconds=silent_seconds)
    flows = [innocent, poison]
    async with LocalFleet(url, flows, isolation=isolation, lease_seconds=lease_seconds) as fleet:
        yield fleet


async def suspect(fleet: LocalFleet, workflow: str, given: str) -> str:
    """A run that two workers died under."""
    run_id = await fleet.submit(workflow, given)
    await fleet.redis.hset(keys.run(run_id), "crashes", 2)
    return run_id


def pid_of(note: Path, what: str) -> int:
    """The one process that noted this."""
    [line] = [line for line in note.read_text().splitlines() if line.startswith(f"{what} ")]
    return int(line.split()[2])


async def reasons(fleet: LocalFleet, run_id: str) -> list[str]:
    """Why the run was claimed again, each time."""
    entries = await fleet.redis.xrange(keys.events(run_id))
    resumed = [fields for _, fields in entries if fields[b"type"] == b"run.resumed"]
    return [json.loads(fields[b"data"])["reason"] for fields in resumed]


def code_of(record: RunRecord) -> str:
    assert record.error is not None
    return record.error.code


@pytest.mark.parametrize("how", ["kill", "exit", "hang"])
async def test_whatever_ends_or_blocks_its_process_is_its_crash(
    environment: None, redis: Redis, valkey_url: str, tmp_path: Path, how: str
) -> None:
    note = tmp_path / "note"
    async with fleet_of(valkey_url, silent_seconds=3) as fleet:
        run_id = await suspect(fleet, "poison", f'{{"note":"{note}","how":"{how}","after":0}}')
        fleet.worker()
        assert code_of(await fleet.ended(run_id)) == "poisoned"
    [pid] = note.read_text().split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


async def test_a_suspect_that_parks_goes_on_later(
    environment: None, redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    given = f'{{"note":"{note}","seconds":[0,0],"nap_before":0,"nap_seconds":0.5}}'
    async with fleet_of(valkey_url) as fleet:
        run_id = await suspect(fleet, "innocent", given)
        fleet.worker()
        assert (await fleet.ended(run_id)).status is Status.COMPLETED
        kinds = await fleet.events(run_id)
        assert (kinds.count("run.waiting"), kinds.count("run.resumed")) == (1, 2)
    first, second = (pid_of(note, f"began {number}") for number in (0, 1))
    assert first != second == os.getpid()


async def test_a_suspect_is_alone_until_its_first_step_is_committed(
    environment: None, redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    async with fleet_of(valkey_url) as fleet:
        run_id = await suspect(fleet, "innocent", f'{{"note":"{note}","seconds":[0.2,0,0]}}')
        fleet.worker()
        assert (await fleet.ended(run_id)).status is Status.COMPLETED
        assert await reasons(fleet, run_id) == ["isolation"]
        assert await redis.hget(keys.run(run_id), "crashes") == b"0"
    first, second, third = (pid_of(note, f"began {number}") for number in range(3))
    assert first != second == third == os.getpid()


async def test_a_process_that_cannot_begin_is_not_the_runs_fault(
    environment: None,
    redis: Redis,
    valkey_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = tmp_path / "note"
    monkeypatch.setenv("POSTHOUSE_LIBRARIES", "not.there")
    async with fleet_of(valkey_url) as fleet:
        run_id = await suspect(fleet, "innocent", f'{{"note":"{note}","seconds":[0]}}')
        fleet.worker()
        async with asyncio.timeout(20), redis.pubsub() as channel:
            await channel.subscribe(keys.events(run_id))
            while (await fleet.record(run_id)).epoch < 2:
                await channel.get_message(timeout=0.2)
        monkeypatch.setenv("POSTHOUSE_LIBRARIES", "tests.road.perils")
        record = await fleet.ended(run_id)
        assert record.status is Status.COMPLETED


async def test_redis_stands_still_for_longer_than_a_lease(
    environment: None, valkey: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "note"
    monkeypatch.setenv("REDIS_URL", valkey.url)
    async with fleet_of(valkey.url) as fleet:
        run_id = await suspect(fleet, "innocent", f'{{"note":"{note}","seconds":[3,0]}}')
        fleet.worker()
        async with asyncio.timeout(20):
            while not note.exists():
                await clock.sleep(0.02)
        valkey.freeze()
        await clock.sleep(2.2)
        valkey.thaw()
        assert (await fleet.ended(run_id)).status is Status.COMPLETED
        assert await reasons(fleet, run_id) == ["isolation"]  # it was never anybody else's
    assert note.read_text().count("began 0 ") == 1
