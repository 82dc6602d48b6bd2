"""What is taken in, when it begins, and how long it may take."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from api_app.main import build_app
from posthouse.storage import keys
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

RUNS = "/api/v1/runs"
WANTED = {"workflow": "errand", "input": {}}
RESEARCH = "/api/v1/workflows/research"


class Given(BaseModel):
    topic: str = ""
    depth: str = ""


class Got(BaseModel):
    text: str = "whole"


class Errand:
    """Notes the order in which runs begin; waits for `gate`."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def body(self, ctx: RunContext, given: Given) -> Got:
        return await ctx.step("work", self.work, ctx.run_id)

    async def work(self, run_id: str) -> Got:
        self.began.append(run_id)
        await self.gate.wait()
        return Got()


@pytest.fixture
def errand() -> Errand:
    return Errand()


@pytest.fixture
def flows(errand) -> dict[str, Workflow]:
    return {n: Workflow(n, 1, "", Given, Got, errand.body) for n in ("errand", "research")}


@pytest.fixture
async def app(settings, redis, flows):
    made = build_app(settings, flows)
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
async def api(settings, redis, serve, flows):
    async with serve(build_app(settings, flows)) as serving:
        yield serving


@pytest.fixture
async def fleet(valkey_url, redis, flows) -> AsyncIterator[LocalFleet]:
    async with LocalFleet(valkey_url, flows.values(), lease_seconds=0.6) as opened:
        yield opened


async def accepted(api, **more: object) -> str:
    response = await api.client.post(RUNS, json=WANTED | more)
    assert response.status_code == 202, response.text
    return response.json()["run_id"]


async def ended(api, run_id: str) -> dict:
    return (await api.client.get(f"{RUNS}/{run_id}/wait", params={"timeout": 10})).json()


def in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


async def test_a_full_queue_is_a_429_that_says_when_to_come_again(settings, redis, serve, flows):
    few = settings.model_copy(update={"max_queue": 2})
    async with serve(build_app(few, flows)) as api:
        key = {"Idempotency-Key": "k"}
        first = await api.client.post(RUNS, json=WANTED, headers=key)
        other = await accepted(api)
        refused = await api.client.post(RUNS, json=WANTED)
        short = await api.client.post(RESEARCH, json={"topic": "x"})

        for response in (refused, short):
            body = response.json()
            assert (response.status_code, body["code"], body["retryable"]) == (
                429,
                "queue_full",
                True,
            )
            assert response.headers["content-type"] == "application/problem+json"
            assert 1 <= int(response.headers["retry-after"]) <= 300
        assert short.json()["error"] == "queue_full"
        assert (await api.client.get(RUNS)).json()["runs"][0]["run_id"] == other
        again = await api.client.post(RUNS, json=WANTED, headers=key)
        assert (again.status_code, again.json()) == (202, first.json())

        await api.client.post(f"{RUNS}/{other}/cancel")
        await accepted(api)
        assert (await api.client.post(RUNS, json=WANTED)).status_code == 429

        retry = await api.client.post(f"{RUNS}/{other}/retry")
        assert (retry.status_code, retry.json()["code"]) == (429, "queue_full")
        assert 1 <= int(retry.headers["retry-after"]) <= 300
        assert (await api.client.get(f"{RUNS}/{other}")).json()["status"] == "cancelled"


async def test_the_priority_decides_who_begins_first(api, fleet, errand):
    plain = [await accepted(api) for _ in range(2)]
    last, first = await accepted(api, priority=1), await accepted(api, priority=9)
    fleet.worker(slots=1)
    await asyncio.gather(*(ended(api, run_id) for run_id in (last, first, *plain)))
    assert errand.began == [first, *plain, last]


async def test_a_run_for_later_does_not_begin_before(api, fleet, errand, redis):
    later = await accepted(api, not_before=in_days(30), priority=9)
    fleet.worker()
    now = await accepted(api, not_before="2020-01-01T00:00:00+01:00")
    assert (await ended(api, now))["status"] == "completed"
    shown = (await api.client.get(f"{RUNS}/{later}")).json()
    assert (shown["status"], shown["priority"]) == ("pending", 9)
    assert datetime.fromisoformat(shown["not_before"]) > datetime.now(UTC) + timedelta(days=29)
    assert errand.began == [now]
    # As when the time has come.
    await redis.hset(keys.run(later), "not_before", 1)
    await redis.zadd(keys.DUE, {later: 1})
    assert (await ended(api, later))["status"] == "completed"


async def test_a_run_past_its_timeout_fails_and_a_retry_has_the_whole_time_again(
    api, fleet, errand
):
    errand.gate.clear()
    fleet.worker()
    run_id = await accepted(api, timeout_seconds=0.5)
    record = await ended(api, run_id)
    assert (record["status"], record["timeout_seconds"]) == ("failed", 0.5)
    assert record["error"]["code"] == "timeout"
    assert (record["error"]["retryable"], record["error"]["status"]) == (True, 503)
    errand.gate.set()
    assert (await api.client.post(f"{RUNS}/{run_id}/retry")).status_code == 202
    assert (await ended(api, run_id))["status"] == "completed"


async def test_a_plain_run_shows_what_nobody_asked_for(api):
    shown = (await api.client.get(f"{RUNS}/{await accepted(api)}")).json()
    names = ("priority", "not_before", "timeout_seconds", "retries")
    assert [shown[name] for name in names] == [5, None, None, 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("priority", value) for value in (0, 10, -1, True, 2.5, 5.0, "5", None, [], 10**18)),
        *(("timeout_seconds", value) for value in (0, 0.01, -1, True, "5", 31_536_001, 10**18, {})),
        *(("not_before", value) for value in (0, 1e12, True, "", "now", "1767225600", "12:00")),
        ("not_before", "2027-01-01T00:00:00"),
        ("not_before", "2027-01-01"),
        ("not_before", "2027-01-01Z"),
        ("not_before", "9999-12-31T23:59:59Z"),
        ("not_before", "9999-12-31T23:59:59-23:59"),
        ("not_before", "2027-13-01T00:00:00Z"),
        ("not_before", "2027-01-01T00:00:00+99:00"),
        ("not_before", "2027-01-01T00" + "0" * 50_000),
    ],
)
async def test_what_is_no_time_and_no_number_is_refused(client, redis, field, value):
    response = await client.post(RUNS, json=WANTED | {field: value})
    body = response.json()
    assert (response.status_code, body["code"]) == (400, "invalid_request"), response.text
    assert [error["location"] for error in body["errors"]] == [field]
    assert len(response.content) < 2_000
    assert await redis.keys("run:*") == []


async def test_a_run_for_next_year_but_one_is_refused(client):
    response = await client.post(RUNS, json=WANTED | {"not_before": in_days(400)})
    assert response.json()["detail"] == "not_before: must be within a year from now"


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_timeout_that_is_no_number_is_refused(client, text):
    body = f'{{"workflow":"errand","input":{{}},"timeout_seconds":{text}}}'
    response = await client.post(RUNS, content=body.encode())
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+23:59", "1969-12-31T23:59:59.999Z"])
async def test_a_time_long_ago_is_now(api, redis, moment):
    shown = (await api.client.get(f"{RUNS}/{await accepted(api, not_before=moment)}")).json()
    assert shown["not_before"] is None
    assert await redis.zcard(keys.QUEUE) == 1


async def test_when_it_begins_is_part_of_what_a_key_stands_for(api):
    key = {"Idempotency-Key": "k"}
    first = await api.client.post(RUNS, json=WANTED | {"priority": 7}, headers=key)
    again = await api.client.post(RUNS, json=WANTED | {"priority": 7}, headers=key)
    assert (again.status_code, again.json()) == (202, first.json())
    for more in ({}, {"priority": 8}, {"priority": 7, "timeout_seconds": 9.0}):
        other = await api.client.post(RUNS, json=WANTED | more, headers=key)
        assert other.json()["code"] == "idempotency_mismatch"
