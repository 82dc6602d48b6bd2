import asyncio
import json

from redis.asyncio import Redis

from posthouse.events.log import EventLog
from posthouse.events.types import Draft, RunCreated
from posthouse.ids import new_run_id
from posthouse.runs.transitions import Acceptance, Transitions
from posthouse.storage import keys


async def test_read_gives_the_published_bytes(redis, scribe):
    await scribe.write("run.created", data='{"workflow":"research","version":1}')
    await scribe.write("tool.completed", agent="researcher", step="a/turn:1/tool:x")
    await scribe.write("turn.completed", data='{"text":"ä\\u2028 \\" \\n"}', step="s")

    events = await EventLog(redis).read(scribe.run_id, 0)

    assert [event.envelope for event in events] == scribe.envelopes
    assert [event.seq for event in events] == [1, 2, 3]
    assert [json.loads(event.envelope)["type"] for event in events] == [e.type for e in events]


async def test_read_gives_what_the_scripts_publish(redis):
    run_id = new_run_id()
    created = Draft(event=RunCreated(workflow="research", version=1), agent="a", step="s/t:1")
    async with redis.pubsub() as listener:
        await listener.subscribe(keys.events(run_id))
        await listener.get_message(timeout=5)
        await Transitions(redis).accept(
            Acceptance(run_id, "default", "research", 1, "{}", "{}", created, 1000)
        )
        message = await listener.get_message(timeout=5)

    [event] = await EventLog(redis).read(run_id, 0)

    assert message["data"] == event.envelope


async def test_read_pages_after_a_seq(redis, scribe):
    for _ in range(7):
        await scribe.write("turn.completed")
    log = EventLog(redis)

    assert [event.seq for event in await log.read(scribe.run_id, 2, 3)] == [3, 4, 5]
    assert await log.read(scribe.run_id, 7) == ()
    assert await log.last_seq(scribe.run_id) == 7
    assert await log.last_seq("nobody") == 0


async def test_page_says_how_the_run_stands(redis, scribe):
    await scribe.write("run.created")
    log = EventLog(redis)
    running = await log.page(scribe.run_id, 0)
    await scribe.write("run.failed")
    failed = await log.page(scribe.run_id, 1)

    assert (len(running.events), running.seq, running.ended, running.missing) == (
        1,
        1,
        False,
        False,
    )
    assert (len(failed.events), failed.seq, failed.ended, failed.missing) == (1, 2, True, False)
    assert (await log.page("nobody", 0)).missing


async def test_seqs_are_compared_in_one_round_trip(redis: Redis, new_scribe):
    runs = [new_scribe() for _ in range(3)]
    await asyncio.gather(*(run.write("run.created") for run in runs))
    await redis.delete(keys.run(runs[1].run_id))

    assert await EventLog(redis).seqs([run.run_id for run in runs]) == [1, None, 1]
