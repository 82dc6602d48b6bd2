"""What comes at once: four tool calls of one turn, forty requests with ten keys."""

import asyncio
from collections import Counter

import pytest

KEYS, REQUESTS = 10, 40


async def test_four_parallel_tool_calls_lose_nothing(road, topic):
    run_id = await road.submit(topic())
    record = await road.ended(run_id)
    assert record["status"] == "completed"
    log = await road.log(run_id)
    [asked] = [e["data"]["tool_calls"] for e in log if len(e["data"].get("tool_calls", ())) == 4]
    assert asked == ["extract_content"] * 4
    turn = next(e["step"] for e in log if e["data"].get("tool_calls") == asked)
    calls = next(s for s in await road.steps(run_id) if s["step"] == turn)["result"]["tool_calls"]
    keys = [f"{turn}/tool:{call['id']}" for call in calls]
    for kind in ("tool.started", "tool.completed"):
        told = [e["step"] for e in log if e["type"] == kind and e["step"] in keys]
        assert sorted(told) == sorted(keys)
    journalled = [s["step"] for s in await road.steps(run_id) if s["step"] in keys]
    assert sorted(journalled) == sorted(keys)
    # The next turn begins after all of them, and they are answered in the order of the calls.
    following = next(
        e["seq"] for e in log if e["type"] == "turn.started" and e["seq"] > log_at(log, turn)
    )
    assert all(log_at(log, key) < following for key in keys)
    assert [source["step"] for source in record["output"]["sources"]] == keys
    assert record["usage"]["tool_calls"] == 6
    assert record["usage"]["model_calls"] == 3
    assert set((await road.model.fingerprints()).values()) == {1}


def log_at(log, step):
    """The seq of the last event that a step's commit wrote."""
    ends = ("turn.completed", "tool.completed")
    return max(event["seq"] for event in log if event.get("step") == step and event["type"] in ends)


@pytest.mark.guarantee("G5")
async def test_concurrent_requests_with_the_same_keys_start_each_run_once(road, topic):
    topics = [topic() for _ in range(KEYS)]
    before = await newest(road)

    async def post(number):
        which = number % KEYS
        body = {"topic": topics[which], "depth": "standard"}
        headers = {"Idempotency-Key": f"{topics[which].replace(' ', '-')}"}
        return which, await road.http.post("/api/v1/workflows/research", json=body, headers=headers)

    answers = await asyncio.gather(*(post(number) for number in range(REQUESTS)))
    assert {answer.status_code for _, answer in answers} == {202}
    ids = {(which, answer.json()["workflow_id"]) for which, answer in answers}
    assert len(ids) == KEYS
    replayed = Counter(answer.headers.get("idempotency-replayed") for _, answer in answers)
    assert replayed == {None: KEYS, "true": REQUESTS - KEYS}
    started = await newest(road) - before
    assert started == {run_id for _, run_id in ids}
    for which, run_id in ids:
        record = await road.ended(run_id)
        assert (record["status"], record["input"]["topic"]) == ("completed", topics[which])
        types = Counter(event["type"] for event in await road.log(run_id))
        assert types["run.created"] == types["run.started"] == types["run.completed"] == 1


@pytest.mark.guarantee("G5")
async def test_another_body_with_the_same_key_is_refused(road, topic):
    key = {"Idempotency-Key": topic().replace(" ", "-")}
    body = {"topic": topic(), "depth": "standard"}
    path = "/api/v1/workflows/research"
    first = await road.http.post(path, json=body, headers=key)
    before = await newest(road)
    other = await road.http.post(path, json=body | {"depth": "deep"}, headers=key)
    assert other.status_code == 422
    assert other.headers["content-type"] == "application/problem+json"
    assert other.json()["code"] == other.json()["error"] == "idempotency_mismatch"
    elsewhere = await road.http.post(
        "/api/v1/runs", json={"workflow": "research", "input": body}, headers=key
    )
    assert elsewhere.status_code == 422
    again = await road.http.post(path, json=body, headers=key)
    assert again.status_code == 202
    assert again.json() == first.json()
    assert await newest(road) == before
    await road.ended(first.json()["workflow_id"])


async def newest(road):
    """The ids of all runs that there are."""
    ids, cursor = set(), None
    while True:
        query = {"limit": 100} | ({"cursor": cursor} if cursor else {})
        page = (await road.http.get("/api/v1/runs", params=query)).json()
        ids |= {run["run_id"] for run in page["runs"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return ids
