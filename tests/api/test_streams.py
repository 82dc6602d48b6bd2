import asyncio
import json
import socket

from redis.asyncio import Redis

from posthouse.ids import new_run_id
from posthouse.settings import Settings
from posthouse.storage import keys

RUNS = "/api/v1/runs"


async def test_headers_frames_and_end(api, scribe):
    async with api.stream(f"{RUNS}/{scribe.run_id}/stream") as feed:
        headers = feed.response.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-cache, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["x-content-type-options"] == "nosniff"
        assert (await feed.next()).retry == 2000
        replayed = await feed.messages(2)
        await scribe.write("tool.completed", agent="a", step="a/turn:1/tool:x")
        await scribe.end()
        rest = await feed.messages()

    assert [message.id for message in replayed + rest] == [1, 2, 3, 4]
    assert rest[0].event == "tool.completed"
    assert [m.data.encode() for m in replayed + rest] == scribe.envelopes


async def test_every_cut_point_resumes_with_exactly_the_rest(api, scribe):
    for number in range(5):
        await scribe.write("turn.completed", step=f"a/turn:{number}")
    await scribe.end()
    path = f"{RUNS}/{scribe.run_id}/stream"
    for cut in range(len(scribe.envelopes)):
        async with api.stream(path, Last_Event_ID=str(cut)) as feed:
            assert [m.data.encode() for m in await feed.messages()] == scribe.envelopes[cut:]
        async with api.stream(f"{path}?after={cut}") as feed:
            assert next(m.id for m in await feed.messages()) == cut + 1


async def test_204_when_everything_was_received(api, scribe):
    await scribe.end()
    path = f"{RUNS}/{scribe.run_id}/stream"
    for form in ("native", "progress"):
        for last in (scribe.seq, scribe.seq + 1, 10**14):
            response = await api.client.get(
                path, params={"format": form}, headers={"Last-Event-ID": str(last)}
            )
            assert (response.status_code, response.content) == (204, b"")


async def test_an_id_beyond_the_log_is_clamped(api, scribe):
    async with api.stream(f"{RUNS}/{scribe.run_id}/stream?after=4711") as feed:
        await feed.next()
        await scribe.end()
        assert [m.id for m in await feed.messages()] == [3]


async def test_the_header_goes_before_the_query(api, scribe):
    path = f"{RUNS}/{scribe.run_id}/stream?after=0"
    async with api.stream(path, Last_Event_ID="1") as feed:
        assert (await feed.messages(1))[0].id == 2


async def test_the_id_of_a_polyfill_goes_before_the_address_that_it_began_with(api, scribe):
    await scribe.end()
    path = f"/{scribe.run_id}/stream?after=0&lastEventId=2"
    async with api.stream(RUNS + path) as feed:
        assert [message.id for message in await feed.messages()] == [3]
    async with api.stream(RUNS + path, Last_Event_ID="1") as feed:
        assert [message.id for message in await feed.messages()] == [2, 3]
    assert (await api.client.get(f"/api/v1/workflows{path}4")).status_code == 204
    wrong = (await api.client.get(f"{RUNS}{path}x")).json()
    assert [error["location"] for error in wrong["errors"]] == ["query.lastEventId"]


async def test_wrong_questions_are_refused(client, scribe):
    path = f"{RUNS}/{scribe.run_id}/stream"
    for query in (
        "after=x",
        "after=-1",
        "after=",
        "after=1.5",
        "types=nothing",
        "types=",
        "format=x",
    ):
        response = await client.get(f"{path}?{query}")
        assert response.status_code == 400, query
        assert response.json()["code"] == "invalid_request"
    for last in ("x", "-1", "", "1 2", "9" * 16):
        response = await client.get(path, headers={"Last-Event-ID": last})
        assert response.status_code == 400, last
    unknown = (await client.get(f"{path}?types=run.completed,nothing")).json()
    assert "turn.completed" in unknown["detail"]


async def test_only_the_wanted_types(api, scribe):
    await scribe.write("turn.completed")
    await scribe.end()
    path = f"{RUNS}/{scribe.run_id}/stream?types=run.created,run.completed"
    async with api.stream(path) as feed:
        assert [m.event for m in await feed.messages()] == ["run.created", "run.completed"]


async def test_whoever_does_not_want_the_end_learns_its_id_and_is_stopped(api, scribe):
    await scribe.write("turn.completed")
    await scribe.end("failed")
    path = f"{RUNS}/{scribe.run_id}/stream?types=turn.completed"
    async with api.stream(path) as feed:
        read = [message async for message in _every(feed)]
    assert [(m.id, m.event) for m in read if m.retry is None] == [(3, "turn.completed"), (4, None)]
    assert read[-1].data is None
    again = await api.client.get(path, headers={"Last-Event-ID": "4"})
    assert again.status_code == 204


async def _every(feed):
    while (message := await feed.next()) is not None:
        yield message


async def test_text_is_pushed_without_an_id(api, scribe):
    async with api.stream(f"{RUNS}/{scribe.run_id}/stream") as feed:
        await feed.messages(2)
        delta = (
            f'{{"type":"message.delta","run_id":"{scribe.run_id}","epoch":1,"time":1,"step":"s",'
            '"data":{"offset":0,"text":"ok\\r\\nevent: forged\\ndata: {}"}}'
        )
        await scribe.redis.publish(keys.events(scribe.run_id), delta)
        [message] = await feed.messages(1)

    assert (message.id, message.event, message.data) == (None, "message.delta", delta)


async def test_keep_alive_comments(settings, redis, serve, build, scribe):
    quick = settings.model_copy(update={"keep_alive_seconds": 0.05})
    async with serve(build(quick)) as api, api.stream(f"{RUNS}/{scribe.run_id}/stream") as feed:
        await feed.messages(2)
        comments = [(await feed.next()).comment for _ in range(3)]
        await scribe.end()
        assert len(await feed.messages()) == 1

    assert comments == ["keep-alive"] * 3


async def test_a_client_that_leaves_is_noticed(api, scribe):
    hub = api.app.state.service.hub
    async with api.stream(f"{RUNS}/{scribe.run_id}/stream") as feed:
        await feed.messages(2)
        assert hub.channels == 1
        assert b"sse_clients 1.0" in (await api.client.get("/metrics")).content
    async with asyncio.timeout(5):
        while hub.channels:
            await api.client.get("/health/live")
    assert b"sse_clients 0.0" in (await api.client.get("/metrics")).content


async def test_a_client_that_never_reads_is_dropped_and_resumes(
    settings, redis, serve, build, scribe
):
    async with serve(build(settings, write_seconds=0.3)) as api:
        hub = api.app.state.service.hub
        loop = asyncio.get_running_loop()
        with socket.socket() as never:
            never.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            never.setblocking(False)
            await loop.sock_connect(never, ("127.0.0.1", api.port))
            request = f"GET {RUNS}/{scribe.run_id}/stream HTTP/1.1\r\nHost: x\r\n\r\n"
            await loop.sock_sendall(never, request.encode())
            big = json.dumps({"text": "x" * 60_000})
            async with asyncio.timeout(10):
                while not hub.channels:
                    await api.client.get("/health/live")
                for _ in range(100):
                    await scribe.write("turn.completed", data=big)
                while hub.channels:
                    await api.client.get("/health/live")
        async with api.stream(f"{RUNS}/{scribe.run_id}/stream?after=2") as feed:
            assert [m.id for m in await feed.messages(100)] == list(range(3, 103))


async def test_the_subscription_is_cut_in_the_middle(api, redis: Redis, scribe):
    async with api.stream(f"{RUNS}/{scribe.run_id}/stream") as feed:
        await feed.messages(2)
        for number in range(3):
            await redis.client_kill_filter(_type="pubsub")
            await scribe.write("turn.completed", publish=number != 1)
        await scribe.end()
        assert [m.id for m in await feed.messages()] == [3, 4, 5, 6]


async def test_many_streams_of_one_run(api, scribe):
    async def read() -> int:
        async with api.client.stream("GET", f"{RUNS}/{scribe.run_id}/stream") as response:
            text = b"".join([part async for part in response.aiter_bytes()])
            return text.count(b"\nid: ") + text.startswith(b"id: ")

    readers = [asyncio.create_task(read()) for _ in range(60)]
    async with asyncio.timeout(10):
        while api.app.state.service.hub.channels == 0:
            await api.client.get("/health/live")
    for _ in range(5):
        await scribe.write("turn.completed")
    await scribe.end()

    assert await asyncio.gather(*readers) == [8] * 60


async def test_closing_the_hub_ends_open_streams(api, scribe):
    async with api.stream(f"{RUNS}/{scribe.run_id}/stream") as feed:
        await feed.messages(2)
        await api.app.state.service.hub.close()
        assert await feed.messages() == []


async def test_a_restart_of_the_api_loses_nothing(settings, redis, serve, build, scribe):
    seen: list[int] = []
    path = f"{RUNS}/{scribe.run_id}/stream"
    for _ in range(3):
        async with (
            serve(build(settings)) as api,
            api.stream(path, Last_Event_ID=str(len(seen))) as feed,
        ):
            await scribe.write("turn.completed")
            seen += [m.id for m in await feed.messages(scribe.seq - len(seen))]
        await scribe.write("turn.completed")
    await scribe.end()
    async with serve(build(settings)) as api, api.stream(f"{path}?after={len(seen)}") as feed:
        seen += [m.id for m in await feed.messages()]

    assert seen == list(range(1, scribe.seq + 1))


async def test_redis_goes_and_comes_back_under_an_open_stream(valkey, serve, build, new_scribe):
    settings = Settings(redis_url=valkey.url, keep_alive_seconds=0.5, _env_file=None)
    direct = Redis.from_url(valkey.url)
    scribe = new_scribe()
    scribe.redis = direct
    async with direct, serve(build(settings)) as api:
        await scribe.record()
        await scribe.write("run.created")
        async with api.stream(f"{RUNS}/{scribe.run_id}/stream") as feed:
            await feed.messages(1)
            await scribe.write("turn.completed", publish=False)
            valkey.stop()
            for method, path in (("GET", RUNS), ("GET", f"{RUNS}/{new_run_id()}/stream")):
                response = await api.client.request(method, path)
                assert response.status_code == 503
            valkey.start()
            await scribe.end()
            assert [m.data.encode() for m in await feed.messages()] == scribe.envelopes[1:]
