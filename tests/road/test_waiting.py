"""A run that waits for a person outlives every worker and Redis itself; the answer resumes it."""

import asyncio
import signal

import pytest

from posthouse import clock

pytestmark = pytest.mark.guarantee("G6")

API = "/api/v1"


async def test_all_workers_and_redis_die_while_a_person_thinks(road, redis, tmp_path):
    note = tmp_path / "steps"
    run_id = await road.start("curious", {"note": str(note)})
    async with road.reading(run_id) as reader:
        await reader.until("input.requested")
        await reader.until("run.waiting")
        [before] = await road.noted(note, 1)
        # With everysec a write may wait up to two seconds for a slow disk.
        await redis.execute_command("WAITAOF", 1, 0, 5000)
        road.hurt("worker-1", signal.SIGTERM)
        road.hurt("worker-2")
        road.hurt("valkey")
        await road.healed()

        record = await got(road, f"runs/{run_id}")
        assert (record["status"], record["wait_reason"]) == ("awaiting_input", "input")
        [asked] = (await got(road, "inputs"))["inputs"]
        assert (asked["run_id"], asked["question"]) == (run_id, "Which word is it?")
        assert record["open_inputs"] == [asked["input_id"]]
        living = {road.stack.pid(name) for name in ("worker-1", "worker-2")}
        workers = (await got(road, "workers"))["workers"]
        # What the dead said last is still shown for a while.
        assert [w["running"] for w in workers if w["pid"] in living and w["running"]] == []

        refused = await road.http.post(f"{API}/runs/{run_id}/input", json={"value": {"word": "A"}})
        assert refused.status_code == 422, refused.text
        both = await asyncio.gather(
            *(
                road.http.post(f"{API}/inputs/{asked['input_id']}", json={"value": {"word": word}})
                for word in ("horse", "letter")
            )
        )
        assert sorted(answer.status_code for answer in both) == [200, 409]
        won = next(a for a in both if a.status_code == 200).json()["answer"]["value"]
        await reader.end()
    record = await road.ended(run_id)
    assert (record["status"], record["output"]) == ("completed", won)
    lines = await road.noted(note, 2)
    assert [line.rpartition(" ")[0] for line in lines] == ["before", f"after {won['word']}"]
    assert lines[0] == before  # no step that was done was done again
    types = [event["type"] for event in await road.log(run_id)]
    for kind in ("input.requested", "input.answered", "run.waiting", "run.completed"):
        assert types.count(kind) == 1, kind
    assert reader.ids == list(range(1, len(types) + 1))


async def got(road, path):
    """What the API answers, as soon as it is there again."""
    async with asyncio.timeout(20):
        while True:
            answer = await road.http.get(f"{API}/{path}")
            if answer.status_code == 200:
                return answer.json()
            assert answer.status_code == 503, answer.text
            await clock.sleep(0.05)
