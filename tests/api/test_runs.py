import asyncio
import hashlib
import json

from posthouse.ids import is_ulid, new_run_id
from posthouse.storage import keys

RUNS = "/api/v1/runs"
WANTED = {"workflow": "echo", "input": {"text": "hi"}}


def code(response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["x-request-id"]
    return body["code"]


async def test_submit_answers_202_with_the_run_in_redis(client, redis):
    response = await client.post(RUNS, json=WANTED | {"metadata": {"who": "me"}})
    body = response.json()

    assert response.status_code == 202
    assert is_ulid(body["run_id"])
    assert response.headers["location"] == f"{RUNS}/{body['run_id']}"
    assert body | {"run_id": "", "created_at": ""} == {
        "run_id": "", "workflow": "echo", "status": "pending", "created_at": "",
    }  # fmt: skip
    stored = await redis.hgetall(keys.run(body["run_id"]))
    assert json.loads(stored[b"input"]) == {"text": "hi", "times": 1}
    assert await redis.zcard(keys.QUEUE) == 1
    shown = (await client.get(response.headers["location"])).json()
    assert shown["metadata"] == {"who": "me"}
    assert (shown["workflow"], shown["version"], shown["status"]) == ("echo", 2, "pending")
    assert shown["created_at"] == body["created_at"]


async def test_the_same_key_starts_one_run(client, redis):
    sent = [client.post(RUNS, json=WANTED, headers={"Idempotency-Key": "k"}) for _ in range(8)]
    answers = await asyncio.gather(*sent)

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    replays = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert sorted(map(str, replays)) == ["None"] + ["true"] * 7
    assert await redis.zcard(keys.QUEUE) == 1


async def test_the_order_of_fields_makes_no_other_request(client):
    one = {"workflow": "echo", "input": {"text": "a", "times": 2}}
    two = {"input": {"times": 2, "text": "a"}, "workflow": "echo"}
    first = await client.post(RUNS, json=one, headers={"Idempotency-Key": "k"})
    second = await client.post(RUNS, json=two, headers={"Idempotency-Key": "k"})

    assert first.json() == second.json()


async def test_another_body_or_route_with_the_same_key_is_refused(client):
    key = {"Idempotency-Key": "k"}
    await client.post(RUNS, json=WANTED, headers=key)
    other = await client.post(RUNS, json=WANTED | {"metadata": {"a": "b"}}, headers=key)
    elsewhere = await client.post("/api/v1/workflows/research", json={"topic": "x"}, headers=key)

    assert (other.status_code, code(other)) == (422, "idempotency_mismatch")
    assert (elsewhere.status_code, code(elsewhere)) == (422, "idempotency_mismatch")
    assert elsewhere.json()["error"] == "idempotency_mismatch"


async def test_a_bad_key_is_refused(client):
    for key in ("", " ", "a b", "x" * 256, "\x7f", "ä".encode()):
        response = await client.post(RUNS, json=WANTED, headers={"Idempotency-Key": key})
        assert (response.status_code, code(response)) == (400, "invalid_request"), key


async def test_two_keys_are_refused(client, redis):
    for path, body in ((RUNS, WANTED), ("/api/v1/workflows/research", {"topic": "x"})):
        for second in ("one", "two"):
            keys_sent = [("Idempotency-Key", "one"), ("Idempotency-Key", second)]
            response = await client.post(path, json=body, headers=keys_sent)
            assert (response.status_code, code(response)) == (400, "invalid_request")
            assert response.json()["errors"][0]["location"] == "header.Idempotency-Key"
    assert await redis.dbsize() == 0


async def test_a_parameter_that_is_there_twice_is_refused(client, scribe):
    one = f"{RUNS}/{scribe.run_id}"
    for path in (
        f"{RUNS}?status=failed&status=completed", f"{RUNS}?limit=1&limit=1", f"{RUNS}?cursor&cursor=",
        f"{one}/events?after=1&after=2", f"{one}/wait?timeout=0&timeout=60",
        f"{one}/stream?after=1&after=2", f"/api/v1/workflows/{scribe.run_id}/stream?after=1&after=2",
    ):  # fmt: skip
        response = await client.get(path)
        assert (response.status_code, code(response)) == (400, "invalid_request"), path
        assert "is there more than once" in response.json()["detail"]


async def test_an_id_is_taken_in_either_case(client, scribe):
    await scribe.end()
    lower = scribe.run_id.lower()
    assert lower != scribe.run_id
    for path in (RUNS, "/api/v1/workflows"):
        shown = (await client.get(f"{path}/{lower}")).json()
        assert scribe.run_id in (shown.get("run_id"), shown.get("workflow_id"))
        done = await client.get(f"{path}/{lower}/stream", params={"after": scribe.seq})
        assert done.status_code == 204
    for path in ("/events", "/steps", "/wait"):
        assert (await client.get(f"{RUNS}/{lower}{path}")).status_code == 200
    assert (await client.delete(f"{RUNS}/{lower}")).status_code == 204
    gone = (await client.get(f"{RUNS}/{lower}")).json()
    assert (gone["status"], gone["run_id"]) == (404, scribe.run_id)


async def test_the_key_of_a_deleted_run_still_gives_the_first_answer(client, scribe, redis):
    key = {"Idempotency-Key": "k"}
    first = await client.post(RUNS, json=WANTED, headers=key)
    run_id = first.json()["run_id"]
    await redis.delete(keys.run(run_id))
    again = await client.post(RUNS, json=WANTED, headers=key)

    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert (await client.get(again.headers["location"])).status_code == 404


async def test_what_is_wrong_with_a_submission_is_said(client):
    wrong = [
        ({"input": {}}, "workflow"),
        ({"workflow": "echo"}, "input"),
        (WANTED | {"colour": "red"}, "colour"),
        (WANTED | {"workflow": "nothing"}, "workflow"),
        (WANTED | {"workflow": 3}, "workflow"),
        (WANTED | {"input": {"text": ""}}, "input.text"),
        (WANTED | {"input": {"text": "a", "times": "many"}}, "input.times"),
        (WANTED | {"input": {"text": "a", "more": 1}}, "input.more"),
        (WANTED | {"input": []}, "input"),
        (WANTED | {"input": None}, "input"),
        (WANTED | {"metadata": {"a": 1}}, "metadata.a"),
        (WANTED | {"metadata": {"a": {"b": "c"}}}, "metadata.a"),
        (WANTED | {"metadata": {"a": "x" * 513}}, "metadata.a"),
        (WANTED | {"metadata": {"k" * 65: "x"}}, None),
        (WANTED | {"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ([], "body"),
        ("text", "body"),
    ]
    for body, location in wrong:
        response = await client.post(RUNS, json=body)
        assert (response.status_code, code(response)) == (400, "invalid_request"), body
        [error, *_] = response.json()["errors"]
        assert location in (None, error["location"]), (body, error)
        assert error["message"]
    unknown = (await client.post(RUNS, json=WANTED | {"workflow": "nothing"})).json()
    assert "echo, research" in unknown["detail"]


async def test_a_submission_without_a_body_is_refused(client):
    assert code(await client.post(RUNS)) == "invalid_request"


async def test_the_list_is_newest_first_in_pages(client):
    made = []
    for number in range(5):
        wanted = {"workflow": "research", "input": {"topic": "x"}} if number == 2 else WANTED
        made.append((await client.post(RUNS, json=wanted)).json()["run_id"])
    made.sort(reverse=True)
    seen, cursor = [], None
    while cursor is not None or not seen:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(RUNS, params=query)).json()
        assert len(page["runs"]) <= 2
        seen += [run["run_id"] for run in page["runs"]]
        cursor = page["next_cursor"]

    assert seen == made
    assert "input" not in page["runs"][0] if page["runs"] else True
    research = (await client.get(RUNS, params={"workflow": "research"})).json()["runs"]
    assert [run["workflow"] for run in research] == ["research"]
    pending = (await client.get(RUNS, params={"status": "pending"})).json()["runs"]
    assert len(pending) == 5
    assert (await client.get(RUNS, params={"status": "failed"})).json() == {
        "runs": [],
        "next_cursor": None,
    }


async def test_the_list_skips_what_is_gone_and_refuses_what_is_wrong(client, redis):
    run_id = (await client.post(RUNS, json=WANTED)).json()["run_id"]
    await redis.zadd(keys.index("default"), {new_run_id(): 0})

    assert [run["run_id"] for run in (await client.get(RUNS)).json()["runs"]] == [run_id]
    for query in ({"status": "done"}, {"limit": 0}, {"limit": 101}, {"cursor": "x"}):
        response = await client.get(RUNS, params=query)
        assert (response.status_code, code(response)) == (400, "invalid_request"), query


async def test_a_run_is_shown_whole(client, scribe):
    await scribe.step("a/turn:1", agent="a", duration_ms=3, usage={"model_calls": 1})
    await scribe.step("a/turn:1/tool:x", error={"code": "tool_failed", "message": "no"})
    await scribe.end(model_calls=1, input_tokens=7)
    body = (await client.get(f"{RUNS}/{scribe.run_id}")).json()

    assert body["output"] == {"text": "hi"}
    assert body["input"] == {"text": "hi", "times": 1}
    assert body["usage"]["input_tokens"] == 7
    assert body["created_at"] == "2023-11-14T22:13:20.000Z"
    assert [step["status"] for step in body["steps"]] == ["completed", "failed"]
    assert body["steps"][0]["step"] == "a/turn:1"
    assert body["error"] is None


async def test_a_failed_run_shows_why(client, scribe):
    error = {"code": "fatal", "message": "the key is wrong", "retryable": False}
    await scribe.end("failed", error=json.dumps(error))

    assert (await client.get(f"{RUNS}/{scribe.run_id}")).json()["error"] == error | {"status": 422}


async def test_unknown_runs_are_not_found(client, redis):
    foreign = new_run_id()
    await redis.hset(keys.run(foreign), mapping={"status": "running", "tenant": "else"})
    for run_id in (new_run_id(), "x", "..", "%00", foreign, "run:x", "a" * 5000):
        for path in ("", "/events", "/steps", "/wait", "/stream"):
            response = await client.get(f"{RUNS}/{run_id}{path}")
            assert (response.status_code, code(response)) == (404, "not_found"), run_id
    gone = await client.get(f"{RUNS}/{foreign}")
    assert gone.json()["run_id"] == foreign


async def test_events_come_in_pages(client, scribe):
    for _ in range(3):
        await scribe.write("turn.completed")
    path = f"{RUNS}/{scribe.run_id}/events"
    first = (await client.get(path, params={"limit": 2})).json()
    rest = (await client.get(path, params={"after": first["next_after"]})).json()

    assert [event["seq"] for event in first["events"] + rest["events"]] == [1, 2, 3, 4, 5]
    assert rest["next_after"] is None
    assert first["events"][0] == json.loads(scribe.envelopes[0])
    for query in ({"after": -1}, {"after": "x"}, {"limit": 0}, {"limit": 501}, {"after": 10**16}):
        assert code(await client.get(path, params=query)) == "invalid_request"


async def test_steps_come_in_pages_with_results(client, scribe, redis):
    text = json.dumps("x" * 70_000).encode()
    digest = hashlib.sha256(text).hexdigest()
    await redis.set(keys.blob(scribe.run_id, digest), text)
    await scribe.step("one", result={"a": []})
    await scribe.step("two", blob=digest)
    await scribe.write("turn.completed")
    await scribe.step("alone", result=None)
    path = f"{RUNS}/{scribe.run_id}/steps"
    first = (await client.get(path, params={"limit": 2})).json()
    rest = (await client.get(path, params={"cursor": first["next_cursor"]})).json()

    assert [step["step"] for step in first["steps"] + rest["steps"]] == ["one", "two", "alone"]
    assert first["steps"][0]["result"] == {"a": []}
    assert first["steps"][1]["result"] == "x" * 70_000
    assert rest["next_cursor"] is None
    assert code(await client.get(path, params={"cursor": "x"})) == "invalid_request"


async def test_wait_answers_at_the_end_or_after_the_timeout(client, scribe):
    path = f"{RUNS}/{scribe.run_id}/wait"
    running = await client.get(path, params={"timeout": 0.05})
    waiting = asyncio.create_task(client.get(path, params={"timeout": 10}))
    await client.get("/health/live")
    await scribe.end()
    ended = await waiting
    again = await client.get(path)

    assert (running.status_code, running.json()["status"]) == (200, "running")
    assert (ended.status_code, ended.json()["status"]) == (200, "completed")
    assert again.json() == ended.json()
    for timeout in (-1, 61, "nan", "x"):
        assert code(await client.get(path, params={"timeout": timeout})) == "invalid_request"


async def test_delete_takes_only_what_has_ended(client, scribe):
    live = await client.delete(f"{RUNS}/{scribe.run_id}")
    await scribe.end()
    gone = await client.delete(f"{RUNS}/{scribe.run_id}")
    again = await client.delete(f"{RUNS}/{scribe.run_id}")

    assert (live.status_code, code(live)) == (409, "conflict")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (again.status_code, code(again)) == (404, "not_found")
