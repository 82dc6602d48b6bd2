"""A run from the request to its output: accepted at once, pushed step by step, never polled for."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from datetime import datetime

from redis.asyncio import Redis

TUTORIAL_FIELDS = {
    "workflow_id", "workflow_type", "status", "input_data", "steps", "output", "error",
    "created_at", "updated_at",
}  # fmt: skip
STEP_TYPES = {"turn.completed", "tool.completed", "tool.failed"}


async def test_the_tutorials_road(road, topic):
    wanted = topic()
    body = f'{{"topic": "{wanted}", "depth": "deep"}}'
    await road.model.tell({"type": "hold", "name": "door"})
    # What `curl -d` sends when it is told no content type.
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await road.http.post("/api/v1/workflows/research", content=body, headers=form)
    assert answer.status_code == 202, answer.text
    run_id = answer.json()["workflow_id"]
    assert answer.json() == {"workflow_id": run_id, "status": "pending"}
    assert answer.headers["location"] == f"/api/v1/workflows/{run_id}"

    async with road.reading(run_id, "tutorial") as reader:
        await road.model.release("door")
        messages = await reader.end()

    assert {message.type for message in messages} == {"message"}
    assert all(message.data["workflow_id"] == run_id for message in messages)
    assert [m.data["status"] for m in messages[:2]] == ["pending", "running"]
    log = await road.log(run_id)
    steps = [event["step"] for event in log if event["type"] in STEP_TYPES]
    told = [m.data["latest_step"] for m in messages if m.data["latest_step"]]
    assert [step["step"] for step in told][:-1] == steps  # the last message repeats the last step
    assert messages[-1].data["steps_count"] == len(steps)
    assert "output" not in messages[-2].data

    record = (await road.http.get(f"/api/v1/workflows/{run_id}")).json()
    assert record.keys() == TUTORIAL_FIELDS
    assert (record["status"], record["workflow_type"]) == ("completed", "research")
    assert record["input_data"] == {"topic": wanted, "depth": "deep"}
    assert sorted(step["step"] for step in record["steps"]) == sorted(steps)
    assert datetime.fromisoformat(record["created_at"]) < datetime.fromisoformat(
        record["updated_at"]
    )
    assert messages[-1].data["output"] == record["output"]
    same = (await road.http.get(f"/api/v1/runs/{run_id}")).json()
    assert (same["run_id"], same["status"]) == (run_id, "completed")
    assert (same["output"], same["steps"]) == (record["output"], record["steps"])


async def test_a_report_cites_what_was_really_read(road, topic):
    run_id = await road.submit(topic())
    record = await road.ended(run_id)
    report, sources = record["output"]["report"], record["output"]["sources"]
    read = {s["step"]: s for s in await road.steps(run_id) if "/tool:" in s["step"]}
    assert len(sources) >= 2
    for source in sources:
        assert source["step"] in read
        assert source["title"]
    assert sum(source["address"] in report for source in sources) >= 2
    found = [e["data"]["address"] for e in await road.log(run_id) if e["type"] == "source.found"]
    assert sorted(found) == sorted(source["address"] for source in sources)


async def test_steps_are_pushed_the_moment_they_happen(road, topic, as_ever):
    # The second turn is held: what was before it has come, and nothing of what is after it.
    await road.model.tell(as_ever, {"type": "hold", "name": "second"})
    run_id = await road.submit(topic())
    async with road.reading(run_id) as native, road.reading(run_id, "tutorial") as tutorial:
        await road.model.held()
        await native.until("turn.started", 2)
        await tutorial.until("message", 5)
        before = [message.type for message in native.seen]
        assert before.count("turn.completed") == 1
        assert before.count("tool.completed") == 2
        assert before[-1] == "turn.started"
        assert tutorial.seen[-1].data["steps_count"] == 3
        assert tutorial.seen[-1].data["latest_step"]["type"] == "tool.completed"

        await road.model.release("second")
        await asyncio.gather(native.end(), tutorial.end())

    log = await road.log(run_id)
    logged = [message for message in native.seen if message.id is not None]
    assert [message.data for message in logged] == log
    live = [m for m in logged if m.type == "turn.completed" and m.data["data"]["iteration"] > 1]
    assert live
    assert tutorial.seen[-1].data["output"] == (await road.ended(run_id))["output"]
    assert native.connections == tutorial.connections == 2  # the second one was told 204


async def test_the_text_of_the_answer_is_pushed_as_it_comes(road, topic, as_ever, screen_of):
    await road.model.pace(latency_ms=60, token_ms=5)
    await road.model.tell(as_ever, as_ever, {"type": "hold", "name": "text"})
    run_id = await road.submit(topic())
    async with road.reading(run_id) as reader:
        first = await reader.until("message.delta")
        assert first.data["data"]["offset"] == 0
        await road.model.release("text")
        messages = await reader.end()
    [text] = screen_of(messages).values()
    [turn] = [s for s in await road.steps(run_id) if s["step"] == "researcher/turn:3"]
    assert text == turn["result"]["text"]
    assert sum(message.type == "message.delta" for message in messages) > 2


async def test_the_whole_text_comes_before_its_turn_ends(road, topic, screen_of):
    await road.model.pace(latency_ms=60)  # so that the text comes in several pieces, quickly
    runs = [await road.submit(topic()) for _ in range(12)]
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(road.reading(run_id)) for run_id in runs]
        for reader in readers:
            assert len(screen_of(await reader.end())) == 1


async def test_nothing_polls_while_a_run_waits_for_its_model(road, redis: Redis, topic):
    await road.model.tell({"type": "hold", "name": "door"})
    run_id = await road.submit(topic())
    async with road.reading(run_id) as reader, road.reading(run_id, "progress") as progress:
        await road.model.held()
        await reader.until("turn.started")
        await progress.until("message", 2)
        asked: list[str] = []
        async with redis.monitor() as monitor:
            # Beats and sweeps of two workers are the clock: so many take more than half a second.
            while asked.count("EVALSHA") < 15:
                command = await monitor.next_command()
                if command["client_type"] != "lua":
                    asked.append(command["command"].split()[0].upper())
        # What the readers asked as they began is through by the third of them.
        settled = [at for at, name in enumerate(asked) if name == "EVALSHA"][2]
        others = Counter(asked[settled:]) - Counter({"HGET": 1})  # the keep-alive check, every 15 s
        # A worker looks for schedules once in one to two seconds, as the net under what it sees coming.
        assert others.keys() <= {"EVALSHA", "BLPOP", "PING", "TIME", "ZRANGE"}, others
        assert others["ZRANGE"] <= 4, others
        await road.model.release("door")
        await reader.end()
