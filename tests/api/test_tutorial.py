import json

from posthouse.ids import new_run_id

WORKFLOWS = "/api/v1/workflows"


async def test_research_is_accepted_with_the_tutorials_fields(client):
    response = await client.post(f"{WORKFLOWS}/research", json={"topic": "x", "depth": "deep"})
    body = response.json()
    shown = (await client.get(f"{WORKFLOWS}/{body['workflow_id']}")).json()
    same = (await client.get(f"/api/v1/runs/{body['workflow_id']}")).json()

    assert response.status_code == 202
    assert body == {"workflow_id": body["workflow_id"], "status": "pending"}
    assert response.headers["location"] == f"{WORKFLOWS}/{body['workflow_id']}"
    assert list(shown) == [
        "workflow_id", "workflow_type", "status", "input_data", "steps", "output", "error",
        "created_at", "updated_at",
    ]  # fmt: skip
    assert shown["workflow_type"] == "research"
    assert shown["input_data"] == {"topic": "x", "depth": "deep"}
    assert same["input"] == shown["input_data"]


async def test_a_body_as_curl_sends_it(client):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    body = b'{"topic":"x"}'
    plain = await client.post(f"{WORKFLOWS}/research", content=body, headers=headers)
    page = await client.post(
        f"{WORKFLOWS}/research", content=body, headers=headers | {"Origin": "http://elsewhere"}
    )

    assert (plain.status_code, page.status_code) == (202, 415)


async def test_errors_have_both_shapes(client):
    for body in ({}, {"topic": ""}, {"topic": "x", "depth": "deepest"}, {"topic": "x", "more": 1}):
        response = await client.post(f"{WORKFLOWS}/research", json=body)
        problem = response.json()
        assert response.status_code == 400, body
        assert problem["error"] == problem["code"] == "invalid_request"
        assert problem["message"] == problem["detail"]
        assert problem["errors"][0]["location"] in ("topic", "depth", "more")
    missing = (await client.get(f"{WORKFLOWS}/{new_run_id()}")).json()
    assert missing["error"] == missing["code"] == "not_found"


async def test_the_same_key_starts_one_run(client):
    key = {"Idempotency-Key": "k"}
    first = await client.post(f"{WORKFLOWS}/research", json={"topic": "x"}, headers=key)
    again = await client.post(f"{WORKFLOWS}/research", json={"topic": "x"}, headers=key)

    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"


async def test_statuses_that_the_tutorial_does_not_know(client, new_scribe):
    shown = {}
    for status in ("incomplete", "cancelled", "failed"):
        scribe = new_scribe()
        await scribe.record()
        error = {"code": "max_iterations", "message": "enough", "retryable": False}
        await scribe.end(status, **({} if status == "cancelled" else {"error": json.dumps(error)}))
        shown[status] = (await client.get(f"{WORKFLOWS}/{scribe.run_id}")).json()

    assert shown["incomplete"]["status"] == "completed"
    assert shown["incomplete"]["output"] == {"text": "hi"}
    assert shown["incomplete"]["error"] is None
    assert shown["cancelled"]["status"] == shown["failed"]["status"] == "failed"
    assert shown["cancelled"]["error"]["code"] == "cancelled"
    assert shown["failed"]["error"]["code"] == "max_iterations"


async def test_progress_is_pushed_and_ends_with_the_output(api, scribe):
    async with api.stream(f"{WORKFLOWS}/{scribe.run_id}/stream") as feed:
        started = await feed.messages(2)
        await scribe.write("turn.started")
        await scribe.write(
            "turn.completed", agent="a", step="a/turn:1", data='{"iteration":1,"model":"m"}'
        )
        await scribe.write("tool.failed", agent="a", step="a/turn:1/tool:x", data='{"tool":"t"}')
        steps = await feed.messages(2)
        await scribe.end()
        [last] = await feed.messages()

    assert [m.json["status"] for m in started] == ["pending", "running"]
    assert [m.id for m in [*started, *steps, last]] == [1, 2, 4, 5, 6]
    assert {m.event for m in [*started, *steps, last]} == {None}
    assert [m.json["steps_count"] for m in steps] == [1, 2]
    assert steps[0].json["latest_step"] == {
        "step": "a/turn:1", "agent": "a", "type": "turn.completed", "iteration": 1, "model": "m",
    }  # fmt: skip
    assert "output" not in steps[1].json
    assert last.json == {
        "workflow_id": scribe.run_id,
        "status": "completed",
        "steps_count": 2,
        "latest_step": steps[1].json["latest_step"],
        "output": {"text": "hi"},
    }


async def test_progress_resumes_at_every_cut_point(api, scribe):
    for number in range(3):
        await scribe.write("turn.completed", step=f"a/turn:{number}")
    await scribe.end()
    path = f"{WORKFLOWS}/{scribe.run_id}/stream"
    async with api.stream(path) as feed:
        whole = await feed.messages()
    for cut in range(scribe.seq):
        async with api.stream(path, Last_Event_ID=str(cut)) as feed:
            rest = await feed.messages()
        assert rest == [message for message in whole if message.id > cut]
    done = await api.client.get(path, headers={"Last-Event-ID": str(scribe.seq)})
    assert done.status_code == 204


async def test_progress_of_a_failure_ends_with_the_error(api, scribe):
    error = {"code": "fatal", "message": "no", "retryable": False}
    await scribe.end("failed", error=json.dumps(error))
    async with api.stream(f"/api/v1/runs/{scribe.run_id}/stream?format=progress") as feed:
        *_, last = await feed.messages()

    assert last.json["error"] == {"error": "fatal"} | error | {"status": 422}
    assert "output" not in last.json


async def test_progress_refuses_what_it_cannot_read(client, scribe):
    response = await client.get(f"{WORKFLOWS}/{scribe.run_id}/stream?after=x")
    missing = await client.get(f"{WORKFLOWS}/{new_run_id()}/stream")

    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")
    assert (missing.status_code, missing.json()["error"]) == (404, "not_found")
