import asyncio

import pytest

from posthouse.clock import iso
from posthouse.engine.clockwork import Clockwork
from posthouse.ids import is_ulid, new_schedule_id
from posthouse.runs.transitions import Transitions
from posthouse.schedules.model import Rule
from posthouse.schedules.store import Schedules
from posthouse.storage import keys

SCHEDULES = "/api/v1/schedules"
WANTED = {
    "cron": "0 9 * * MON-FRI",
    "time_zone": "Europe/Berlin",
    "workflow": "echo",
    "input": {"text": "hi"},
}


async def test_a_schedule_is_kept_shown_listed_and_deleted(client, redis):
    wanted = WANTED | {
        "metadata": {"who": "me"}, "priority": 7, "timeout_seconds": 1.5, "overlap": "cancel_other", "catch_up": "all",
        "budget": {"usd": 0.5, "tokens": 1000, "on_exceeded": "ask"}, "models": {"fast": ["at:m", "at:n:8b"]},
    }  # fmt: skip
    response = await client.post(SCHEDULES, json=wanted)
    body = response.json()
    assert response.status_code == 201
    assert is_ulid(body["schedule_id"])
    assert response.headers["location"] == f"{SCHEDULES}/{body['schedule_id']}"

    now = await Schedules(redis).now()
    expected = wanted | {"input": {"text": "hi", "times": 1}} | {
        "schedule_id": body["schedule_id"], "created_at": body["created_at"], "last_at": None, "last_run_id": None,
        "next_at": iso(Rule(wanted["cron"], wanted["time_zone"]).next_after(now)), "fired": 0, "skipped": 0,
    }  # fmt: skip
    assert body == expected
    assert (await client.get(response.headers["location"].lower())).json() == expected
    del expected["input"]
    assert (await client.get(SCHEDULES)).json() == {"schedules": [expected], "next_cursor": None}

    assert (await client.delete(response.headers["location"])).status_code == 204
    for gone in (
        await client.get(response.headers["location"]),
        await client.delete(response.headers["location"]),
    ):
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found")
        assert "run_id" not in gone.json()
    assert await redis.keys("*") == []


async def test_what_is_not_said_has_a_default(client):
    wanted = {"cron": " * *  * * * ", "workflow": "echo", "input": {"text": "hi"}}
    body = (await client.post(SCHEDULES, json=wanted)).json()
    said = (body["cron"], body["time_zone"], body["overlap"], body["catch_up"], body["priority"])
    assert said == ("* * * * *", "UTC", "skip", "last", 5)
    assert (body["budget"], body["models"]) == (None, {})
    unlimited = (
        await client.post(SCHEDULES, json=wanted | {"budget": {"on_exceeded": "fail"}})
    ).json()
    assert unlimited["budget"] is None


async def test_its_runs_have_its_budget_and_its_models(client, redis):
    chosen = {"budget": {"tokens": 1000, "seconds": 1.5}, "models": {"smart": ["at:m"]}}
    for wanted in (WANTED | chosen, WANTED):
        schedule = (await client.post(SCHEDULES, json=wanted)).json()
        await _make_due(redis, schedule["schedule_id"])
        await Clockwork(Schedules(redis), Transitions(redis), {}).look()
        shown = (await client.get(f"{SCHEDULES}/{schedule['schedule_id']}")).json()
        run = (await client.get(f"/api/v1/runs/{shown['last_run_id']}")).json()
        posted = {key: value for key, value in wanted.items() if key not in ("cron", "time_zone")}
        asked = (await client.post("/api/v1/runs", json=posted)).json()
        other = (await client.get(f"/api/v1/runs/{asked['run_id']}")).json()
        assert (run["budget"], run["models"]) == (other["budget"], other["models"])
        assert (run["budget"] is None) == (wanted is WANTED)


async def _make_due(redis, schedule_id):
    now = await Schedules(redis).now()
    slot = Rule(WANTED["cron"], WANTED["time_zone"]).next_after(now - 8 * 86_400_000)
    await redis.hset(keys.schedule(schedule_id), "next", slot)
    await redis.zadd(keys.SCHEDULES, {schedule_id: slot})
    return now


async def test_what_a_slot_did_is_shown_and_its_run_says_where_it_comes_from(client, redis):
    location = (await client.post(SCHEDULES, json=WANTED)).headers["location"]
    schedule_id = location.rpartition("/")[2]
    now = await _make_due(redis, schedule_id)
    await Clockwork(Schedules(redis), Transitions(redis), {}).look()

    shown = (await client.get(location)).json()
    assert (shown["fired"], shown["skipped"]) == (1, 0)
    assert shown["last_at"] < iso(now) < shown["next_at"]
    run = (await client.get(f"/api/v1/runs/{shown['last_run_id']}")).json()
    assert run["metadata"] == {"schedule_id": schedule_id, "slot": shown["last_at"]}
    assert (run["workflow"], run["version"], run["input"]) == (
        "echo",
        2,
        {"text": "hi", "times": 1},
    )
    await client.delete(location)
    assert (await client.get(f"/api/v1/runs/{shown['last_run_id']}")).status_code == 200


async def test_the_same_key_keeps_one_schedule(client, redis):
    key = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(
        *(client.post(SCHEDULES, json=WANTED, headers=key) for _ in range(4))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    replays = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert sorted(map(str, replays)) == ["None"] + ["true"] * 3
    assert await redis.zcard(keys.SCHEDULES) == 1

    for path, other in (
        (SCHEDULES, WANTED | {"cron": "* * * * *"}),
        ("/api/v1/runs", {"workflow": "echo", "input": {"text": "hi"}}),
    ):
        refused = await client.post(path, json=other, headers=key)
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize(
    ("wrong", "location"),
    [
        ({"cron": "0 25 * * *"}, "cron"),
        ({"cron": "@daily"}, "cron"),
        ({"cron": 5}, "cron"),
        ({"time_zone": "Berlin"}, "time_zone"),
        ({"time_zone": "right/Europe/Berlin"}, "time_zone"),
        ({"budget": {"usd": 0}}, "budget.usd"),
        ({"budget": {"hours": 1}}, "budget.hours"),
        ({"models": {"fast": "at:m"}}, "models.fast"),
        ({"workflow": "nothing"}, "workflow"),
        ({"input": {"text": ""}}, "input.text"),
        ({"overlap": "sometimes"}, "overlap"),
        ({"catch_up": "first"}, "catch_up"),
        ({"priority": 10}, "priority"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"metadata": {"slot": "x"}}, "metadata.slot"),
        ({"not_before": "2030-01-01T00:00:00Z"}, "not_before"),
    ],
)
async def test_what_is_wrong_is_named(client, redis, wrong, location):
    response = await client.post(SCHEDULES, json=WANTED | wrong)
    body = response.json()
    assert (response.status_code, body["code"]) == (400, "invalid_request")
    assert [error["location"] for error in body["errors"]] == [location]
    assert await redis.keys("*") == []


@pytest.mark.parametrize(
    ("models", "said"),
    [({"medium": ["at:m"]}, "medium"), ({"fast": ["no reference"]}, "no reference"), ({"fast": []}, "fast")],
)  # fmt: skip
async def test_models_are_checked_as_those_of_a_run(client, redis, models, said):
    run = {key: WANTED[key] for key in ("workflow", "input")}
    as_run = await client.post("/api/v1/runs", json=run | {"models": models})
    response = await client.post(SCHEDULES, json=WANTED | {"models": models})
    assert said in response.json()["detail"]
    same = ("status", "code", "title", "detail", "errors")
    assert [response.json().get(key) for key in same] == [as_run.json().get(key) for key in same]
    assert await redis.keys("*") == []


async def test_lists_go_by_pages(client):
    kept = [(await client.post(SCHEDULES, json=WANTED)).json()["schedule_id"] for _ in range(5)]
    found, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(SCHEDULES, params=query)).json()
        found += [schedule["schedule_id"] for schedule in page["schedules"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert found == sorted(kept, reverse=True)
    assert (await client.get(SCHEDULES, params={"cursor": "x"})).status_code == 400


async def test_there_is_no_other(client):
    for name in (new_schedule_id(), "nothing"):
        assert (await client.get(f"{SCHEDULES}/{name}")).status_code == 404
