"""A model that refuses, never ends, is busy, or breaks off: each is met as its kind asks for."""

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

BAD_KEY = "sk-bad-0123456789"


async def test_a_bad_key_fails_at_once(new_road, tmp_path, topic):
    def with_bad_key(process):
        if process.name != "worker-1":
            return process
        return replace(process, env={**process.env, "OPENAI_API_KEY": BAD_KEY})

    async with new_road(tmp_path, workers=1, adapt=with_bad_key) as road:
        run_id = await road.submit(topic())
        async with road.reading(run_id) as reader:
            await reader.end()
        record = await road.ended(run_id)
        assert record["status"] == "failed"
        assert (record["error"]["code"], record["error"]["retryable"]) == ("fatal", False)
        assert "key" in record["error"]["message"]
        [request] = await road.model.requests()
        assert request["status"] == 401
        assert [m.type for m in reader.seen] == [
            "run.created", "run.started", "turn.started", "model.routed", "run.failed",
        ]  # fmt: skip
        assert reader.seen[-1].at - reader.seen[2].at < 2  # the shortest pause before a retry
        tutorial = (await road.http.get(f"/api/v1/workflows/{run_id}")).json()
        assert (tutorial["status"], tutorial["error"]["code"]) == ("failed", "fatal")
        log = (tmp_path / "data" / "posthouse.log").read_text()
    assert BAD_KEY not in log


async def test_a_model_that_never_ends_is_stopped_and_what_it_read_is_kept(road, topic, as_ever):
    await road.model.tell(as_ever, as_ever, {"type": "loop", "times": 0})
    run_id = await road.submit(topic(), "standard")
    record = await road.ended(run_id)
    assert record["status"] == "incomplete"
    assert record["error"]["code"] == "max_iterations"
    assert record["error"]["message"]
    assert len(await road.model.requests()) == record["usage"]["model_calls"] == 5
    assert len(record["output"]["sources"]) >= 2
    assert all(s["address"] in record["output"]["report"] for s in record["output"]["sources"])
    last = (await road.log(run_id))[-1]
    assert (last["type"], last["data"]["code"]) == ("run.incomplete", "max_iterations")
    tutorial = (await road.http.get(f"/api/v1/workflows/{run_id}")).json()
    assert (tutorial["status"], tutorial["error"]) == ("completed", None)
    assert tutorial["output"] == record["output"]


async def test_what_passes_by_itself_is_tried_again(road, topic, as_ever, screen_of):
    # One after another meets its fault; then all of them wait for their next try together.
    await road.model.pace(latency_ms=40)  # so that the first piece is pushed at once
    # Text is pushed in pieces of some 400 characters: the last one is just on its way then.
    breaks = {"truncate": 48, "corrupt": 18, "disconnect": 3}
    broken = [{"type": kind, "after_chunks": after} for kind, after in breaks.items()]
    busy = {"type": "status", "status": 429, "retry_after": 1}
    faults = [*(("connection", 3, fault) for fault in broken), ("rate_limit", 1, busy)]
    async with AsyncExitStack() as readers:
        runs = []
        for code, turn, fault in faults:
            await road.model.tell(*[as_ever] * (turn - 1), fault)
            run_id = await road.submit(topic())
            reader = await readers.enter_async_context(road.reading(run_id))
            retrying = (await reader.until("model.retrying")).data
            assert retrying["step"] == f"researcher/turn:{turn}"
            assert (retrying["data"]["code"], retrying["data"]["attempt"]) == (code, 1)
            assert retrying["data"]["delay_ms"] >= 1000
            runs.append((run_id, reader))
        for run_id, reader in runs:
            await reader.end()
            await came_through(road, run_id, reader, screen_of)
    behaviours = [request["behaviour"] for request in await road.model.requests()]
    assert [b for b in behaviours if b not in (None, "delay")] == [f["type"] for _, _, f in faults]
    assert len(behaviours) == 3 * len(faults) + len(faults)  # each fault costs one request more


async def came_through(road, run_id, reader, screen_of):
    """The run completed, no turn was counted twice, and no text stands twice on the screen."""
    record, log = await road.ended(run_id), await road.log(run_id)
    assert [m.data for m in reader.seen if m.id is not None] == log
    types = Counter(event["type"] for event in log)
    assert record["status"] == "completed"
    assert record["usage"]["model_calls"] == types["turn.completed"] == types["turn.started"] == 3
    code = next(e["data"]["code"] for e in log if e["type"] == "model.retrying")
    assert types["model.retrying"] == 1
    assert types["message.superseded"] == (code == "connection")
    [text] = screen_of(reader.seen).values()
    [turn] = [s for s in await road.steps(run_id) if s["step"] == "researcher/turn:3"]
    assert text == turn["result"]["text"]
    assert record["output"]["report"].startswith(text.strip()[:200])
