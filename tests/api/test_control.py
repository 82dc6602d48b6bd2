"""Cancel and retry as a caller sees them, with workers that do the work."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel

from api_app.main import build_app
from posthouse.errors import RunCode, StepFailed
from posthouse.events.types import SourceFound
from posthouse.ids import new_run_id
from posthouse.settings import Settings
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Incomplete, Workflow

RUNS = "/api/v1/runs"
WANTED = {"workflow": "errand", "input": {}}
ONCE_MORE = "run.retried"


class Given(BaseModel):
    pass


class Got(BaseModel):
    done: list[str]


class Errand:
    """Steps; the last one fails while `broken`, or waits for `gate`. `done` is what was really done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.broken = self.spent = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()
        self.dropped = asyncio.Event()
        self.workflow = Workflow("errand", 1, "", Given, Got, self.body)

    async def body(self, ctx: RunContext, given: Given) -> Got | Incomplete[Got]:
        one = await ctx.step("one", self.note, "one")
        await ctx.emit("between", SourceFound(address="somewhere", title=one))
        two = await ctx.step("two", self.note, "two")
        if (await ctx.step("scout/turn:1", self.turn))["finish_reason"] != "stop":
            return Incomplete(Got(done=[one, two]), RunCode.BUDGET_EXCEEDED, "It is spent.")
        return Got(done=[one, two, await ctx.step("three", self.last)])

    async def turn(self) -> dict[str, str]:
        """As an agent's, that the budget stops while `spent`."""
        return {"finish_reason": "budget_exceeded" if self.spent else "stop"}

    async def note(self, name: str) -> str:
        self.done.append(name)
        return name

    async def last(self) -> str:
        self.reached.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.dropped.set()
            raise
        if self.broken:
            raise StepFailed("it is broken")
        return await self.note("three")


@pytest.fixture
def errand() -> Errand:
    return Errand()


@pytest.fixture
async def api(settings, redis, serve, errand):
    async with serve(build_app(settings, {"errand": errand.workflow})) as serving:
        yield serving


@pytest.fixture
async def fleet(valkey_url, redis, errand) -> AsyncIterator[LocalFleet]:
    async with LocalFleet(valkey_url, [errand.workflow], lease_seconds=60) as opened:
        yield opened


async def submitted(api) -> str:
    response = await api.client.post(RUNS, json=WANTED)
    assert response.status_code == 202
    return response.json()["run_id"]


async def ended(api, run_id: str) -> dict:
    return (await api.client.get(f"{RUNS}/{run_id}/wait", params={"timeout": 10})).json()


def refused(response, status: int, code: str) -> str:
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    return body["detail"]


async def test_cancel_answers_with_the_ended_run_however_often(api, redis):
    run_id = await submitted(api)
    first = await api.client.post(f"{RUNS}/{run_id}/cancel")
    again = await api.client.post(f"{RUNS}/{run_id.lower()}/cancel")

    assert (first.status_code, first.json()["status"]) == (200, "cancelled")
    assert first.json()["ended_at"] is not None
    assert (again.status_code, again.json()) == (200, first.json())
    assert await redis.keys("arq:*") == []
    metrics = (await api.client.get("/metrics")).text
    assert 'workflow_status_total{status="cancelled"} 1.0' in metrics


async def test_what_has_ended_otherwise_is_not_cancelled(api, new_scribe):
    for status in ("completed", "incomplete", "failed"):
        scribe = new_scribe()
        await scribe.record()
        await scribe.end(status)
        response = await api.client.post(f"{RUNS}/{scribe.run_id}/cancel")
        assert status in refused(response, 409, "conflict")
    for run_id in (new_run_id(), "nothing", f"{scribe.run_id}:journal"):
        for route in ("cancel", "retry"):
            refused(await api.client.post(f"{RUNS}/{run_id}/{route}"), 404, "not_found")


async def test_of_cancel_and_completion_one_wins_and_both_say_so(api, fleet):
    fleet.worker(slots=20)
    ids = await asyncio.gather(*(submitted(api) for _ in range(40)))
    answers = await asyncio.gather(*(api.client.post(f"{RUNS}/{one}/cancel") for one in ids))
    for run_id, answer in zip(ids, answers, strict=True):
        record = await ended(api, run_id)
        assert record["status"] == {200: "cancelled", 409: "completed"}[answer.status_code]
        kinds = await fleet.events(run_id)
        assert sum(kind in ("run.cancelled", "run.completed") for kind in kinds) == 1


async def test_cancel_drops_the_work_in_flight(api, fleet, errand):
    errand.gate.clear()
    fleet.worker()
    run_id = await submitted(api)
    async with asyncio.timeout(10):
        await errand.reached.wait()
    async with asyncio.timeout(2):
        response = await api.client.post(f"{RUNS}/{run_id}/cancel")
        await errand.dropped.wait()
    assert response.json()["status"] == "cancelled"
    shown = (await api.client.get(f"/api/v1/workflows/{run_id}")).json()
    assert (shown["status"], shown["error"]["code"]) == ("failed", "cancelled")


async def test_retry_does_what_failed_again_and_keeps_the_rest(api, fleet, errand):
    errand.broken = True
    fleet.worker()
    run_id = await submitted(api)
    assert (await ended(api, run_id))["status"] == "failed"
    errand.broken = False
    response = await api.client.post(f"{RUNS}/{run_id}/retry")

    assert response.status_code == 202
    assert response.headers["location"] == f"{RUNS}/{run_id}"
    assert (response.json()["run_id"], response.json()["retries"]) == (run_id, 1)
    record = await ended(api, run_id)
    assert (record["status"], record["error"], record["retries"]) == ("completed", None, 1)
    assert record["output"] == {"done": ["one", "two", "three"]}
    assert errand.done == ["one", "two", "three"]
    refused(await api.client.post(f"{RUNS}/{run_id}/retry"), 409, "conflict")


async def test_retry_from_a_step_does_it_and_all_after_it_again(api, fleet, errand):
    errand.broken = True
    fleet.worker()
    run_id = await submitted(api)
    await ended(api, run_id)
    errand.broken = False
    response = await api.client.post(f"{RUNS}/{run_id}/retry", json={"from_step": "two"})
    assert response.status_code == 202
    assert (await ended(api, run_id))["status"] == "completed"
    assert errand.done == ["one", "two", "two", "three"]


@pytest.mark.parametrize("more", [{}, {"budget": {"tokens": 9000, "seconds": 60}}])
async def test_a_retry_goes_on_where_the_budget_stopped_the_run(api, fleet, errand, more):
    errand.spent = True
    fleet.worker()
    budget = {"tokens": 100, "tool_calls": 5, "on_exceeded": "fail"}
    run_id = (await api.client.post(RUNS, json=WANTED | {"budget": budget})).json()["run_id"]
    record = await ended(api, run_id)
    assert (record["status"], record["error"]["code"]) == ("incomplete", "budget_exceeded")
    errand.spent = False
    response = await api.client.post(f"{RUNS}/{run_id}/retry", json=more)
    assert response.status_code == 202
    limits = (
        {"tokens": 9000, "tool_calls": 5, "seconds": 60.0}
        if more
        else {"tokens": 100, "tool_calls": 5}
    )
    shown = response.json()["budget"]
    assert (shown["limits"], shown["on_exceeded"]) == (limits, "fail")
    record = await ended(api, run_id)
    assert (record["status"], errand.done) == ("completed", ["one", "two", "three"])


async def test_a_second_retry_has_the_budget_of_the_first_or_is_refused(api, fleet, errand):
    errand.spent = True
    worker = fleet.worker()
    run_id = (await api.client.post(RUNS, json=WANTED | {"budget": {"tokens": 100}})).json()[
        "run_id"
    ]
    await ended(api, run_id)
    await fleet.drained(worker)
    for _ in range(2):
        again = await api.client.post(f"{RUNS}/{run_id}/retry", json={"budget": {"tokens": 900}})
        assert (again.status_code, again.json()["status"]) == (202, "pending")
    for budget in ({"tokens": 901}, {"tokens": 900, "tool_calls": 1}):
        response = await api.client.post(f"{RUNS}/{run_id}/retry", json={"budget": budget})
        assert "has not ended" in refused(response, 409, "conflict")
    shown = (await api.client.get(f"{RUNS}/{run_id}")).json()
    assert (shown["budget"]["limits"], shown["retries"]) == ({"tokens": 900}, 1)


async def test_a_retry_gives_a_budget_to_no_run_that_had_none(api, fleet, errand):
    errand.broken = True
    worker = fleet.worker()
    run_id = await submitted(api)
    await ended(api, run_id)
    response = await api.client.post(f"{RUNS}/{run_id}/retry", json={"budget": {"tokens": 9}})
    assert "no budget" in refused(response, 409, "conflict")
    shown = (await api.client.get(f"{RUNS}/{run_id}")).json()
    assert (shown["status"], shown["budget"], shown["retries"]) == ("failed", None, 0)
    await fleet.drained(worker)  # or it might end again between the two
    for nothing in ({}, {"tokens": None}):
        again = await api.client.post(f"{RUNS}/{run_id}/retry", json={"budget": nothing})
        assert (again.status_code, again.json()["budget"]) == (202, None)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"from_step":null}'])
async def test_the_body_of_a_retry_may_be_left_out(api, body):
    run_id = await submitted(api)
    await api.client.post(f"{RUNS}/{run_id}/cancel")
    headers = {"Content-Type": "application/json"}
    for _ in range(2):  # the second is the first, sent again
        response = await api.client.post(f"{RUNS}/{run_id}/retry", content=body, headers=headers)
        assert (response.status_code, response.json()["status"]) == (202, "pending")
        assert response.json()["retries"] == 1


async def test_what_is_wrong_with_a_retry_is_said(api, fleet, errand):
    errand.broken = True
    fleet.worker()
    run_id = await submitted(api)
    await ended(api, run_id)
    for body, location in (
        ({"from_step": "nothing"}, "from_step"),
        ({"from_step": ""}, "from_step"),
        ({"from_step": "x" * 90_000}, "from_step"),
        ({"from_step": 1}, "from_step"),
        ({"step": "two"}, "step"),
        ({"budget": {"usd": -1}}, "budget.usd"),
        ([], "body"),
        ("two", "body"),
    ):
        response = await api.client.post(f"{RUNS}/{run_id}/retry", json=body)
        detail = refused(response, 400, "invalid_request")
        assert [error["location"] for error in response.json()["errors"]] == [location]
        assert "two" not in detail
        assert len(response.content) < 2_000
    huge = {"from_step": "x" * 1_000_000}
    response = await api.client.post(f"{RUNS}/{run_id}/retry", json=huge)
    refused(response, 413, "payload_too_large")
    assert (await api.client.get(f"{RUNS}/{run_id}")).json()["retries"] == 0


async def test_only_what_ended_without_success_is_tried_again(api, new_scribe):
    live = await submitted(api)
    assert "pending" in refused(await api.client.post(f"{RUNS}/{live}/retry"), 409, "conflict")
    scribe = new_scribe()
    await scribe.record()
    await scribe.end()
    for body in ({}, {"from_step": "nothing"}):
        response = await api.client.post(f"{RUNS}/{scribe.run_id}/retry", json=body)
        assert "completed" in refused(response, 409, "conflict")


async def test_a_reader_comes_back_for_what_a_retry_brings(api, fleet, errand):
    errand.broken = True
    fleet.worker()
    run_id = await submitted(api)
    stream = f"{RUNS}/{run_id}/stream"
    async with api.stream(stream) as feed:
        seen = await feed.messages()
    assert seen[-1].event == "run.failed"
    at_the_end = {"Last-Event-ID": str(seen[-1].id)}
    assert (await api.client.get(stream, headers=at_the_end)).status_code == 204

    errand.broken = False
    errand.gate.clear()
    errand.reached.clear()
    await api.client.post(f"{RUNS}/{run_id}/retry")
    async with api.stream(stream, Last_Event_ID=str(seen[-1].id)) as feed:
        waiting = asyncio.create_task(ended(api, run_id))
        await errand.reached.wait()
        errand.gate.set()
        rest = await feed.messages()
    assert [message.event for message in rest] == [ONCE_MORE, "run.resumed", "run.completed"]
    assert (await waiting)["status"] == "completed"
    ids = [message.id for message in seen + rest]
    assert ids == list(range(1, len(ids) + 1))
    async with api.stream(stream) as feed:
        assert [message.id for message in await feed.messages()] == ids
    assert (await api.client.get(stream, params={"after": ids[-1]})).status_code == 204


async def test_an_open_stream_goes_on_over_an_end_that_a_retry_follows(api, scribe):
    async with api.stream(f"{RUNS}/{scribe.run_id}/stream") as feed:
        await feed.messages(2)
        await scribe.write("run.failed", publish=False)
        await scribe.write(ONCE_MORE)
        await scribe.write("run.resumed")
        await scribe.end()
        kinds = [message.event for message in await feed.messages()]
    assert kinds == ["run.failed", ONCE_MORE, "run.resumed", "run.completed"]


async def test_progress_is_of_the_last_try(api, fleet, errand):
    errand.broken = True
    fleet.worker()
    run_id = await submitted(api)
    for path in (f"{RUNS}/{run_id}/stream?format=progress", f"/api/v1/workflows/{run_id}/stream"):
        async with api.stream(path) as feed:
            former = await feed.messages()
        assert [m.json["status"] for m in former] == ["pending", "running", "failed"]
        assert former[-1].json["error"]["code"] == "tool_failed"
    errand.broken = False
    await api.client.post(f"{RUNS}/{run_id}/retry")
    await ended(api, run_id)
    async with api.stream(path) as feed:
        whole = [message.json for message in await feed.messages()]
    assert [message["status"] for message in whole[2:]] == [
        "failed", "pending", "running", "completed",
    ]  # fmt: skip
    assert not {"output", "error"} & set(whole[2])
    assert whole[-1]["output"] == {"done": ["one", "two", "three"]}


CALLS = [
    ("POST", "/runs/{}/cancel"), ("POST", "/runs/{}/retry"), ("GET", "/queue"), ("GET", "/workers"),
    ("GET", "/dead-letters"),
]  # fmt: skip


@pytest.mark.parametrize("how", ["stop", "freeze"])
async def test_without_redis_they_are_a_503_within_a_second(valkey, serve, errand, how):
    settings = Settings(redis_url=valkey.url, _env_file=None)
    async with serve(build_app(settings, {"errand": errand.workflow})) as api:
        run_id = await submitted(api)
        await api.client.post(f"{RUNS}/{run_id}/cancel")
        getattr(valkey, how)()
        for method, path in CALLS:
            began = time.monotonic()
            response = await api.client.request(method, "/api/v1" + path.format(run_id))
            assert time.monotonic() - began < 1.0
            refused(response, 503, "unavailable")
            assert response.headers["retry-after"] == "1"


async def test_a_full_redis_still_lets_work_be_ended(valkey, serve, errand):
    settings = Settings(redis_url=valkey.url, _env_file=None)
    async with serve(build_app(settings, {"errand": errand.workflow})) as api:
        run_id = await submitted(api)
        await api.app.state.service.redis.config_set("maxmemory", "1")
        refused(await api.client.post(RUNS, json=WANTED), 503, "unavailable")
        response = await api.client.post(f"{RUNS}/{run_id}/cancel")
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
