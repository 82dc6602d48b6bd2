"""SIGKILL to the worker that carries a run: another one goes on, and nothing is done or paid twice."""

import os
import signal
from collections import Counter

import pytest

pytestmark = [pytest.mark.guarantee("G1"), pytest.mark.guarantee("G2")]

# A lease of one second, the sweep, the claim; generously, as other things run on the machine.
RECOVERY_SECONDS = 15.0


async def undisturbed(road, topic):
    """The output, the steps, the texts and the questions of a run that nobody hurts."""
    await road.model.reset()
    run_id = await road.submit(topic)
    record = await road.ended(run_id)
    assert record["epoch"] == 1
    return told(record, await road.steps(run_id)), await road.model.fingerprints()


def told(record, steps):
    """What a run came to: its status, its output, and what each step returned."""
    results = {step["step"]: stable(step["result"]) for step in steps}
    return record["status"], record["output"], results


def stable(result):
    """A step's result without how long it took."""
    return {name: value for name, value in result.items() if name != "latency_ms"}


def recovery_of(reader, killed_at):
    """Seconds from the kill to the event that says that another worker took the run."""
    resumed = next(m for m in reader.seen if m.type == "run.resumed")
    assert resumed.data["data"]["reason"] == "crash"
    print(f"\nrecovered {resumed.at - killed_at:.2f} s after SIGKILL, with a lease of 1 s")
    assert resumed.at - killed_at < RECOVERY_SECONDS
    return resumed


@pytest.mark.parametrize(("turn", "streamed"), [(1, False), (2, False), (3, True)])
async def test_killed_while_it_waits_for_the_model(road, topic, as_ever, screen_of, turn, streamed):
    wanted = topic()
    expected, questions = await undisturbed(road, wanted)
    await road.model.reset()
    await road.model.pace(latency_ms=60)  # so that the first piece is pushed at once
    await road.model.tell(*[as_ever] * (turn - 1), {"type": "hold", "name": "door"})
    run_id = await road.submit(wanted)
    async with road.reading(run_id) as reader:
        owner = road.worker_of(await reader.until("run.started"))
        held = await road.model.held()
        if streamed:
            await reader.until("message.delta")
        killed_at = road.hurt(owner)
        messages = await reader.end()

    record = await road.ended(run_id)
    assert told(record, await road.steps(run_id)) == expected
    asked = await road.model.fingerprints()
    assert asked - questions == Counter([held["fingerprint"]])  # the call in flight, once more
    assert questions - asked == Counter()
    log = await road.log(run_id)
    assert [m.data for m in messages if m.id is not None] == log
    resumed = recovery_of(reader, killed_at)
    assert resumed.data["epoch"] == record["epoch"] == 2
    types = Counter(event["type"] for event in log)
    assert types["run.completed"] == types["run.started"] == types["run.resumed"] == 1
    assert types["turn.completed"] == 3
    assert record["usage"]["model_calls"] == 3
    if streamed:
        assert types["message.superseded"] == 1
        [text] = screen_of(messages).values()
        assert text == expected[2]["researcher/turn:3"]["text"]


@pytest.mark.guarantee("G4")
async def test_a_worker_that_was_only_frozen_does_no_harm(road, topic, as_ever):
    wanted = topic()
    expected, _ = await undisturbed(road, wanted)
    await road.model.reset()
    await road.model.tell(as_ever, {"type": "hold", "name": "door"})
    run_id = await road.submit(wanted)
    async with road.reading(run_id) as reader:
        owner = road.worker_of(await reader.until("run.started"))
        await road.model.held()
        pid = road.stack.pid(owner)
        os.kill(pid, signal.SIGSTOP)
        try:
            await reader.until("run.resumed")
            await road.model.release("door")  # its answer waits for it in the socket
            await reader.end()
            log = await road.log(run_id)
        finally:
            os.kill(pid, signal.SIGCONT)
        await road.logged(owner, "lease_lost|slice_dropped", run_id)
    record = await road.ended(run_id)
    assert told(record, await road.steps(run_id)) == expected
    assert await road.log(run_id) == log
    assert record["epoch"] == 2
    assert record["usage"]["model_calls"] == 3
    assert road.stack.pid(owner) == pid


async def test_killed_while_its_tools_work(new_road, tmp_path, topic):
    # The first search reads the folder, and this one takes a worker a while.
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    words = "worker death lease journal fence and events of a run. " * 18
    for number in range(10):
        text = "\n\n".join(f"Page {number}.{line} says: {words}" for line in range(400))
        (corpus / f"page{number}.md").write_text(f"# Page {number}\n\n{text}")
    wanted = topic()
    async with new_road(tmp_path, corpus=corpus) as road:
        run_id = await road.submit(wanted)
        async with road.reading(run_id) as reader:
            owner = road.worker_of(await reader.until("run.started"))
            await reader.until("tool.started", 2)
            killed_at = road.hurt(owner)
            await reader.end()
        log, record = await road.log(run_id), await road.ended(run_id)
        resumed = recovery_of(reader, killed_at).data
        asked = await road.model.fingerprints()
        assert set(asked.values()) == {1}  # no model call was in flight
        before = [e["type"] for e in log if e["seq"] < resumed["seq"]]
        assert before == [
            "run.created", "run.started", "turn.started", "model.routed", "turn.completed",
            "tool.started", "tool.started",
        ]  # fmt: skip
        expected, questions = await undisturbed(road, wanted)
        assert told(record, await road.steps(run_id)) == expected
        assert asked == questions
    done = Counter(event["step"] for event in log if event["type"] == "tool.completed")
    begun = Counter(event["step"] for event in log if event["type"] == "tool.started")
    assert set(done.values()) == {1}
    assert done.keys() == begun.keys()
    assert sorted(begun.values()) == [1] * (len(begun) - 2) + [2, 2]
