"""Cancel over HTTP, with real processes: at once for the caller, and the call in flight is dropped."""

import asyncio
import os
import signal

import pytest

from posthouse import clock

pytestmark = pytest.mark.guarantee("G9")

API = "/api/v1"


async def dropped(road, held):
    """Returns when the stand-in has seen that nobody waits any more for the answer that it holds."""
    async with asyncio.timeout(5):
        while True:
            record = next(r for r in await road.model.requests() if r["n"] == held["n"])
            if not record["held"]:
                assert not record["finished"]
                return
            await clock.sleep(0.02)


async def test_the_call_in_flight_is_dropped(road, topic):
    await road.model.tell({"type": "hold", "name": "door"})
    run_id = await road.submit(topic())
    held = await road.model.held()
    asked_at = clock.monotonic()
    answer = await road.http.post(f"{API}/runs/{run_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert clock.monotonic() - asked_at < 1
    await dropped(road, held)
    took = clock.monotonic() - asked_at
    print(f"\nthe model's connection was dropped {took:.2f} s after the cancel was asked for")
    assert took < 2
    log = await road.log(run_id)
    assert log[-1]["type"] == "run.cancelled"
    await road.model.release("door")
    # The worker is as good as before.
    again = await road.http.post(f"{API}/runs/{run_id}/retry")
    assert again.status_code == 202
    assert (await road.ended(run_id))["status"] == "completed"
    assert (await road.http.post(f"{API}/runs/{run_id}/cancel")).status_code == 409


async def test_a_frozen_worker_drops_it_when_it_wakes(road, topic):
    await road.model.tell({"type": "hold", "name": "door"})
    run_id = await road.submit(topic())
    async with road.reading(run_id) as reader:
        owner = road.worker_of(await reader.until("run.started"))
        held = await road.model.held()
        pid = road.stack.pid(owner)
        os.kill(pid, signal.SIGSTOP)
        try:
            asked_at = clock.monotonic()
            answer = await road.http.post(f"{API}/runs/{run_id}/cancel")
            assert answer.json()["status"] == "cancelled"
            assert clock.monotonic() - asked_at < 1
            assert (await reader.end())[-1].type == "run.cancelled"
            await road.model.release("door")  # the answer waits for the worker in its socket
            log, steps = await road.log(run_id), await road.steps(run_id)
        finally:
            os.kill(pid, signal.SIGCONT)
    await road.logged(owner, "lease_lost|slice_dropped", run_id)
    assert held["n"]
    # It beats and works again, and nothing of the cancelled run has come after its end.
    assert (await road.ended(await road.submit(topic())))["status"] == "completed"
    assert (await road.log(run_id), await road.steps(run_id)) == (log, steps)
    assert (await road.ended(run_id))["status"] == "cancelled"
