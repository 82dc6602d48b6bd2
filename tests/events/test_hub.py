import asyncio
import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from structlog.testing import capture_logs

from posthouse.events.hub import Hub
from posthouse.events.log import EventLog, Logged
from posthouse.events.reader import READ_LIMIT, Delta, Dropped
from posthouse.ids import new_run_id
from posthouse.storage import keys
from posthouse.storage.connect import connect

LIMIT = 10


async def collect(reader) -> list:
    async with asyncio.timeout(LIMIT):
        return [item async for item in reader]


async def receive(reader, count: int) -> list:
    async with asyncio.timeout(LIMIT):
        return [await anext(reader) for _ in range(count)]


def envelopes(items) -> list[bytes]:
    return [item.envelope for item in items]


async def test_replays_then_follows_to_the_end(hub, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 1)
        await scribe.write("run.started")
        await scribe.write("run.completed")
        rest = await collect(reader)

    assert envelopes(rest) == scribe.envelopes[1:]
    assert reader.ended


async def test_every_cut_point_resumes_with_exactly_the_rest(hub, scribe):
    await scribe.write("run.created")
    for number in range(10):
        await scribe.write("turn.completed", step=f"a/turn:{number}")
    await scribe.write("run.completed")
    for cut in range(len(scribe.envelopes) + 1):
        with hub.reader(scribe.run_id, cut) as reader:
            assert envelopes(await collect(reader)) == scribe.envelopes[cut:]


async def test_every_cut_point_of_a_live_run_resumes_with_exactly_the_rest(hub, scribe):
    await scribe.write("run.created")
    got: list[bytes] = []
    for number in range(12):
        with hub.reader(scribe.run_id, len(got)) as reader:
            await scribe.write("turn.completed", step=f"a/turn:{number}")
            got += envelopes(
                await receive(reader, 1 + number % 2 * (len(scribe.envelopes) - len(got) - 1))
            )
    await scribe.write("run.completed")
    with hub.reader(scribe.run_id, len(got)) as reader:
        got += envelopes(await collect(reader))

    assert got == scribe.envelopes


async def test_a_lost_message_is_read_from_the_log(hub, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 1)
        await scribe.write("turn.started", publish=False)
        await scribe.write("turn.completed")
        assert envelopes(await receive(reader, 2)) == scribe.envelopes[1:]


async def test_a_lost_last_message_is_found_by_the_check(hub, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 1)
        await scribe.write("run.completed", publish=False)
        rest = asyncio.create_task(collect(reader))
        await hub.check()
        assert envelopes(await rest) == scribe.envelopes[1:]


async def test_the_check_comes_by_itself(redis, valkey_url, scribe):
    await scribe.write("run.created")
    client = connect(valkey_url)
    async with client, Hub(client, keep_alive_seconds=0.1) as hub:
        with hub.reader(scribe.run_id) as reader:
            await receive(reader, 1)
            await scribe.write("run.completed", publish=False)
            assert len(await collect(reader)) == 1


async def test_deltas_come_between_and_have_no_seq(hub, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 1)
        await scribe.write("turn.started")
        delta = await scribe.delta("hello")
        await scribe.write("turn.completed")
        items = await receive(reader, 3)

    assert [type(item) for item in items] == [Logged, Delta, Logged]
    assert items[1].envelope == delta


async def test_deltas_of_a_replaced_worker_are_left_out(hub, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 1)
        await scribe.write("run.resumed", epoch=2)
        await scribe.delta("too late", epoch=1)
        await scribe.delta("new", epoch=2)
        items = await receive(reader, 2)

    assert b"new" in items[1].envelope


async def test_several_envelopes_in_one_message(hub, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 1)
        await scribe.write("turn.started", publish=False)
        await scribe.write("turn.completed", publish=False)
        await scribe.redis.publish(keys.events(scribe.run_id), b"\n".join(scribe.envelopes[1:]))
        assert envelopes(await receive(reader, 2)) == scribe.envelopes[1:]


async def test_what_is_no_envelope_is_ignored(hub, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 1)
        for text in ("", "nonsense", "[]", "1", '{"seq":2}', '{"seq":2,"type":"x"'):
            await scribe.redis.publish(keys.events(scribe.run_id), text)
        await scribe.write("run.completed")
        assert envelopes(await collect(reader)) == scribe.envelopes[1:]


async def test_only_the_own_terminal_event_ends(hub, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 1)
        await scribe.write("run.completed", run_id=new_run_id())
        await scribe.write("turn.completed")
        assert len(await receive(reader, 2)) == 2
        await scribe.write("run.completed")
        assert len(await collect(reader)) == 1


async def test_reads_on_when_a_retry_followed_the_end(hub, scribe):
    await scribe.write("run.created")
    await scribe.write("run.failed")
    await scribe.write("run.retried")
    with hub.reader(scribe.run_id) as reader:
        assert len(await receive(reader, 3)) == 3
        await scribe.write("run.completed")
        assert len(await collect(reader)) == 1


async def test_a_run_that_is_gone_ends_its_readers(hub, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 1)
        await scribe.redis.delete(keys.run(scribe.run_id), keys.events(scribe.run_id))
        await hub.check()
        assert await collect(reader) == []


async def test_the_connection_is_cut_and_nothing_is_lost(hub, redis: Redis, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 1)
        for number in range(5):
            await redis.client_kill_filter(_type="pubsub")
            await scribe.write("turn.completed", step=f"a/turn:{number}")
            await receive(reader, 1)
        await scribe.write("run.completed")
        await collect(reader)
        assert reader.seq == 7


async def test_redis_goes_away_and_comes_back(valkey, scribe):
    client = connect(valkey.url, socket_timeout=1.0)
    direct = Redis.from_url(valkey.url)
    run = type(scribe)(direct, new_run_id())
    async with client, direct, Hub(client, keep_alive_seconds=0.3) as hub:
        await run.write("run.created")
        with hub.reader(run.run_id) as reader:
            await receive(reader, 1)
            await run.write("turn.started", publish=False)
            valkey.stop()
            rest = asyncio.create_task(collect(reader))
            await asyncio.wait({rest}, timeout=0.7)
            assert not rest.done()
            valkey.start()
            await run.write("run.completed", publish=False)
            assert envelopes(await rest) == run.envelopes[1:]


async def test_a_subscription_that_never_lasts_is_asked_for_less_and_less_often(valkey, scribe):
    client = connect(valkey.url)
    seen, enough = [], asyncio.Event()

    def count(logger, method, line):
        seen.append((line["event"], time.monotonic()))
        if len(seen) == 5:
            enough.set()
        return line

    async with client:
        # It can connect, but not listen.
        await client.execute_command("ACL", "SETUSER", "default", "resetchannels")
        with capture_logs(processors=[count]):
            async with Hub(client) as hub, asyncio.timeout(LIMIT):
                with hub.reader(scribe.run_id):
                    await enough.wait()
    assert {line for line, _ in seen} == {"hub.disconnected"}
    # Half of the four pauses is what chance leaves of them at least.
    assert seen[4][1] - seen[0][1] >= (0.05 + 0.1 + 0.2 + 0.4) / 2


async def test_a_check_that_fails_is_said_and_made_again(hub, scribe, redis: Redis):
    await redis.set(keys.run(scribe.run_id), "no record")
    with hub.reader(scribe.run_id), capture_logs() as lines:
        await hub.check()
    assert [line["event"] for line in lines] == ["hub.check_failed"]


async def test_many_readers_far_behind_get_everything(hub, scribe):
    for _ in range(READ_LIMIT * 2):
        await scribe.write("turn.completed", publish=False)
    readers = [hub.reader(scribe.run_id, after) for after in range(0, 40)]
    reading = [asyncio.create_task(collect(reader)) for reader in readers]
    await scribe.write("run.completed")
    async with asyncio.timeout(LIMIT):
        read = await asyncio.gather(*reading)
    assert [envelopes(items) for items in read] == [scribe.envelopes[after:] for after in range(40)]
    for reader in readers:
        reader.close()


async def test_a_log_that_was_cut_back_drops_its_reader(hub, scribe):
    for _ in range(4):
        await scribe.write("turn.completed")
    with hub.reader(scribe.run_id) as reader:
        await receive(reader, 4)
        await scribe.redis.xdel(keys.events(scribe.run_id), "3-0", "4-0")
        await scribe.redis.hset(keys.run(scribe.run_id), "seq", 2)
        await hub.check()
        with pytest.raises(Dropped):
            await collect(reader)


async def test_a_reader_that_does_not_read_is_dropped_and_resumes(hub, scribe):
    await scribe.write("run.created")
    with hub.reader(scribe.run_id) as slow, hub.reader(scribe.run_id) as quick:
        await receive(slow, 1)
        await receive(quick, 1)
        for _ in range(100):
            await scribe.write("turn.completed")
            await receive(quick, 1)
        with pytest.raises(Dropped):
            await slow.take()
    with hub.reader(scribe.run_id, 1) as again:
        assert envelopes(await receive(again, 100)) == scribe.envelopes[1:]


async def test_a_long_log_is_replayed_in_pages(hub, scribe, redis: Redis):
    pipe = redis.pipeline()
    for seq in range(1, 1251):
        entry = {
            "type": "turn.completed",
            "time": 1,
            "epoch": 1,
            "run_id": scribe.run_id,
            "data": "{}",
        }
        pipe.xadd(keys.events(scribe.run_id), entry, id=f"{seq}-0")
    pipe.hset(keys.run(scribe.run_id), mapping={"seq": 1250, "status": "completed"})
    await pipe.execute()
    with hub.reader(scribe.run_id) as reader:
        assert [item.seq for item in await collect(reader)] == list(range(1, 1251))


async def test_two_thousand_readers_of_one_run(hub, scribe):
    await scribe.write("run.created")
    readers = [hub.reader(scribe.run_id) for _ in range(2000)]
    everybody = [asyncio.create_task(collect(reader)) for reader in readers]
    began = time.monotonic()
    for _ in range(5):
        await scribe.write("turn.completed")
    await scribe.write("run.completed")
    views = await asyncio.gather(*everybody)
    print(f"2,000 readers, 7 events each: {time.monotonic() - began:.3f} s")
    for reader in readers:
        reader.close()

    assert all(envelopes(view) == scribe.envelopes for view in views)


async def test_the_last_reader_takes_the_subscription_with_it(
    hub, redis: Redis, scribe, new_scribe
):
    other = new_scribe()
    await scribe.write("run.created")
    await other.write("run.created")
    with hub.reader(other.run_id) as stays:
        await receive(stays, 1)
        for _ in range(20):
            with hub.reader(scribe.run_id) as one, hub.reader(scribe.run_id) as two:
                await receive(one, 1)
                await receive(two, 1)
        await other.write("turn.started")
        await receive(stays, 1)
        assert hub.channels == 1
        async with asyncio.timeout(LIMIT):
            while await redis.pubsub_numsub(keys.events(scribe.run_id)) != [
                (keys.events(scribe.run_id).encode(), 0)
            ]:
                pass


async def test_readers_that_leave_and_come_at_once_miss_nothing(hub, scribe):
    await scribe.write("run.created")
    for number in range(50):
        hub.reader(scribe.run_id).close()
        with hub.reader(scribe.run_id, number + 1) as reader:
            await scribe.write("turn.completed")
            [item] = await receive(reader, 1)
            assert item.seq == number + 2


async def test_closing_the_hub_ends_every_reader_and_leaves_no_task(redis, valkey_url, scribe):
    await scribe.write("run.created")
    before = asyncio.all_tasks()
    client = connect(valkey_url)
    hub = Hub(client)
    hub.start()
    reader = hub.reader(scribe.run_id)
    await receive(reader, 1)
    rest = asyncio.create_task(collect(reader))
    await hub.close()
    await hub.close()

    assert await rest == []
    assert await collect(hub.reader(scribe.run_id)) == []
    assert not reader.ended
    assert asyncio.all_tasks() == before
    await client.aclose()
    await client.connection_pool.disconnect()


async def test_wait_terminal(hub, scribe):
    await scribe.write("run.created")
    assert not await hub.wait_terminal(scribe.run_id, 0.05)
    waiting = asyncio.create_task(hub.wait_terminal(scribe.run_id, LIMIT, after=1))
    await scribe.write("run.cancelled")

    assert await waiting
    assert await hub.wait_terminal(scribe.run_id, LIMIT, after=2)
    assert hub.channels == 0


FATES = st.lists(st.sampled_from(["sent", "lost", "twice", "late", "delta"]), max_size=25)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(fates=FATES, cut=st.integers(0, 5))
async def test_whatever_happens_to_messages_the_view_is_the_log(hub, new_scribe, fates, cut):
    scribe = new_scribe()
    await scribe.write("run.created")
    late: list[bytes] = []
    with hub.reader(scribe.run_id) as first, hub.reader(scribe.run_id, min(cut, 1)) as second:
        views = [asyncio.create_task(collect(reader)) for reader in (first, second)]
        for fate in fates:
            if fate == "delta":
                await scribe.delta("x")
                continue
            envelope = await scribe.write("turn.completed", publish=fate in ("sent", "twice"))
            if fate == "twice":
                await scribe.redis.publish(keys.events(scribe.run_id), envelope)
            elif fate == "late":
                late.append(envelope)
            elif fate == "sent" and late:
                await scribe.redis.publish(keys.events(scribe.run_id), late.pop())
        await scribe.write("run.completed")
        one, two = await asyncio.gather(*views)

    log = await EventLog(scribe.redis).read(scribe.run_id, 0)
    assert [item for item in one if isinstance(item, Logged)] == list(log)
    assert [item.seq for item in two if isinstance(item, Logged)] == [
        event.seq for event in log if event.seq > min(cut, 1)
    ]
    assert json.loads(one[-1].envelope)["type"] == "run.completed"
