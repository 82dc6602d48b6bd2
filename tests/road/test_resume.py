"""Readers that lose their connection, wherever and however, see exactly the rest."""

import asyncio

import pytest
from redis.asyncio import Redis

FORMS = ("native", "progress", "tutorial")

pytestmark = pytest.mark.guarantee("G3")


async def read(road, run_id, form, after=0):
    """What one connection to the end gives, and its status."""
    async with road.stream(run_id, after, form) as feed:
        return feed.status, [(message.id, message.raw) async for message in feed]


@pytest.mark.parametrize("form", FORMS)
async def test_every_cut_point_of_a_real_run(road, topic, form):
    run_id = await road.submit(topic())
    await road.ended(run_id)
    status, whole = await read(road, run_id, form)
    assert status == 200
    last = (await road.log(run_id))[-1]["seq"]
    if form == "native":
        assert [number for number, _ in whole] == list(range(1, last + 1))
    assert whole[-1][0] == last
    for cut in range(last):
        wanted = [message for message in whole if message[0] > cut]
        assert await read(road, run_id, form, cut) == (200, wanted), cut
    for beyond in (last, last + 1):
        assert await read(road, run_id, form, beyond) == (204, [])


@pytest.mark.parametrize("form", FORMS)
async def test_a_reader_that_loses_its_connection_after_every_message(road, topic, form):
    # The run goes on meanwhile: it is slow, and each connection is left after one message.
    await road.model.pace(latency_ms=60, token_ms=2)
    run_id = await road.submit(topic())
    async with road.reading(run_id, form, cut_after=1) as leaving, road.reading(run_id, form) as at:
        await asyncio.gather(leaving.end(), at.end())
    whole = [message.raw for message in at.seen if message.id is not None]
    assert [message.raw for message in leaving.seen if message.id is not None] == whole
    assert leaving.ids == at.ids
    assert leaving.connections == len(whole) + 1
    if form == "native":
        assert at.ids == [event["seq"] for event in await road.log(run_id)]


async def test_over_a_killed_api_in_the_middle_of_a_run(road, topic, as_ever):
    await road.model.tell(as_ever, {"type": "hold", "name": "middle"})
    run_id = await road.submit(topic())
    async with (
        road.reading(run_id) as native,
        road.reading(run_id, "progress") as progress,
        road.reading(run_id, "tutorial") as tutorial,
    ):
        await road.model.held()
        await native.until("turn.started", 2)
        await tutorial.until("message", 5)
        road.hurt("api")
        await road.model.release("middle")  # so that the run may go on while nobody can read it
        await road.healed()
        await asyncio.gather(native.end(), progress.end(), tutorial.end())
    log = await road.log(run_id)
    assert [message.data for message in native.seen if message.id is not None] == log
    assert native.connections >= 3
    assert [event["type"] for event in log].count("run.resumed") == 0  # no worker noticed
    for reader, form in ((progress, "progress"), (tutorial, "tutorial")):
        _, whole = await read(road, run_id, form)
        assert [(message.id, message.raw) for message in reader.seen] == whole


async def test_with_the_push_cut_again_and_again(road, redis: Redis, topic, as_ever):
    # Two turns are held: the subscription is cut before each goes on, and once in between.
    await road.model.pace(latency_ms=30, token_ms=1)
    await road.model.tell(*({"type": "hold", "name": str(turn)} for turn in (1, 2, 3)))
    run_id = await road.submit(topic())
    async with road.reading(run_id) as native, road.reading(run_id, "progress") as progress:
        for turn in (1, 2, 3):
            await road.model.held()
            await native.until("turn.started", turn)
            cut = await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            assert turn > 1 or cut >= 1
            await road.model.release(str(turn))
        await asyncio.gather(native.end(), progress.end())
    log = await road.log(run_id)
    assert [message.data for message in native.seen if message.id is not None] == log
    assert native.connections == 2  # the stream itself was never cut
    _, whole = await read(road, run_id, "progress")
    assert [(message.id, message.raw) for message in progress.seen] == whole
