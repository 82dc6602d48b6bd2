"""Plans as a caller sees them: their nodes while they are worked on, and what a retry does of them again."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel

from api_app.main import build_app
from posthouse.errors import StepFailed
from posthouse.ids import new_run_id
from posthouse.llm.outside import blocks_in
from posthouse.testing.crew import Crew, agents_called
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.catalogue import library
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow

RUNS = "/api/v1/runs"
AGENTS = agents_called("planner", "researcher", "analyst", "writer")
TOPIC = re.compile(r"^Topic: Do (\S+)\.$", re.MULTILINE)


def node(name: str, *depends_on: str) -> dict:
    return {
        "id": name,
        "agent": "researcher",
        "task": f"Do {name}.",
        "depends_on": list(depends_on),
    }


class Note(BaseModel):
    text: str = ""


@workflow("noter")
async def noter(ctx: RunContext, request: Note) -> Note:
    """Has a step that is called a plan and is none."""

    async def work() -> str:
        return "no plan"

    return Note(text=await ctx.step("plan", work))


FLOWS = library() | {"noter": noter}


class Stage:
    """Plays one plan; what is in `failing` fails, what is in `held` waits for the gate."""

    def __init__(self) -> None:
        self.plan = [node("a"), node("b"), node("c", "a", "b"), node("d", "b"), node("e", "d")]
        self.failing: set[str] = set()
        self.held: set[str] = set()
        self.gate = asyncio.Event()
        self.reached = asyncio.Event()
        self.done: list[str] = []
        self.crew = Crew(self.said)

    async def said(self, agent: str, task: str) -> str:
        if agent == "planner":
            return json.dumps({"subtasks": self.plan})
        found = TOPIC.search(task)
        name = found[1] if found else agent
        self.done.append(name)
        if name in self.held:
            self.reached.set()
            await self.gate.wait()
        if name in self.failing:
            raise StepFailed(f"{name} is broken")
        return f"{name}({','.join(text for _, text in blocks_in(task))})"


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
async def api(settings, redis, serve):
    async with serve(build_app(settings, FLOWS)) as serving:
        yield serving


@pytest.fixture
async def fleet(valkey_url, redis, stage) -> AsyncIterator[LocalFleet]:
    options = {"agents": AGENTS, "runner": stage.crew, "lease_seconds": 60}
    async with LocalFleet(valkey_url, FLOWS.values(), **options) as opened:
        opened.worker()
        yield opened


async def submitted(api, **given) -> str:
    wanted = {"workflow": "orchestrator", "input": {"goal": "the goal"} | given}
    response = await api.client.post(RUNS, json=wanted)
    assert response.status_code == 202, response.text
    return response.json()["run_id"]


async def ended(api, run_id: str) -> dict:
    return (await api.client.get(f"{RUNS}/{run_id}/wait", params={"timeout": 10})).json()


async def planned(api, run_id: str) -> dict:
    response = await api.client.get(f"{RUNS}/{run_id}/plan")
    assert response.status_code == 200, response.text
    return response.json()


def states(plan: dict) -> dict[str, str]:
    return {one["id"]: one["state"] for one in plan["nodes"]}


async def retried(api, run_id: str, **body) -> dict:
    response = await api.client.post(f"{RUNS}/{run_id}/retry", json=body)
    assert response.status_code == 202, response.text
    return await ended(api, run_id)


async def test_a_plan_is_shown_while_it_is_worked_on(api, fleet, stage):
    stage.held = {"b"}
    run_id = await submitted(api)
    async with asyncio.timeout(10):
        await stage.reached.wait()
        while states(plan := await planned(api, run_id))["a"] != "completed":
            await fleet.until(run_id, "running")
    assert list(plan) == ["run_id", "on_failure", "nodes", "edges", "levels"]
    assert (plan["run_id"], plan["on_failure"]) == (run_id, "skip")
    assert states(plan) == dict(
        zip("abcde", ["completed", "running", *["waiting"] * 3], strict=True)
    )
    a, b, c, *_ = plan["nodes"]
    assert (a["agent"], a["task"], a["depends_on"], a["error"]) == ("researcher", "Do a.", [], None)
    assert (a["status"], b["status"], b["wait_reason"]) == ("completed", "running", None)
    assert a["started_at"] <= a["ended_at"]
    assert (b["ended_at"], c["run_id"], c["status"], c["started_at"]) == (None, None, None, None)
    assert c["usage"] == a["usage"]
    assert {"from": "a", "to": "c"} in plan["edges"]
    assert len(plan["edges"]) == 4
    assert plan["levels"] == [["a", "b"], ["c", "d"], ["e"]]
    assert a["usage"] == (await api.client.get(f"{RUNS}/{a['run_id']}")).json()["usage"]
    child = (await api.client.get(f"{RUNS}/{b['run_id']}")).json()
    assert (child["workflow"], child["parent"]) == ("agent", run_id)
    stage.gate.set()
    assert (await ended(api, run_id))["status"] == "completed"
    assert set(states(await planned(api, run_id)).values()) == {"completed"}


async def test_where_there_is_no_plan(api, fleet):
    for name, given in (("agent", {"agent": "researcher", "task": "Do x."}), ("noter", {})):
        answer = await api.client.post(RUNS, json={"workflow": name, "input": given})
        run_id = answer.json()["run_id"]
        assert (await ended(api, run_id))["status"] == "completed"
        missing = await api.client.get(f"{RUNS}/{run_id}/plan")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        assert "has no plan" in missing.json()["detail"]
    for run_id in (new_run_id(), "nothing"):
        missing = await api.client.get(f"{RUNS}/{run_id}/plan")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


async def test_a_retry_does_what_failed_again_and_nothing_else(api, fleet, stage):
    stage.failing = {"b"}
    run_id = await submitted(api)
    record = await ended(api, run_id)
    assert (record["status"], record["error"]["code"]) == ("incomplete", "tool_failed")
    first = await planned(api, run_id)
    lost = dict(zip("abcde", ["completed", "failed", *["skipped"] * 3], strict=True))
    assert states(first) == lost
    assert first["nodes"][1]["error"]["message"] == "b is broken"
    assert sorted(stage.done) == ["a", "b", "writer"]

    record = await retried(api, run_id)  # still broken: the same end
    assert (record["status"], states(await planned(api, run_id))) == ("incomplete", lost)
    stage.failing.clear()
    stage.done.clear()
    record = await retried(api, run_id)
    assert (record["status"], record["error"], record["retries"]) == ("completed", None, 2)
    assert sorted(stage.done) == ["b", "c", "d", "e", "writer"]
    assert record["output"]["answer"].startswith("writer(a(),b(),c(a(),b()),d(b()),e(d(b())))")
    last = await planned(api, run_id)
    assert set(states(last).values()) == {"completed"}
    for one in (0, 1):
        assert last["nodes"][one]["run_id"] == first["nodes"][one]["run_id"]
    kinds = await fleet.events(run_id)
    assert (kinds.count("run.retried"), kinds[-1]) == (2, "run.completed")


async def test_what_went_on_without_a_failed_one_is_done_again_with_it(api, fleet, stage):
    stage.failing = {"b"}
    run_id = await submitted(api, on_failure="continue")
    record = await ended(api, run_id)
    assert record["status"] == "incomplete"
    before = await planned(api, run_id)
    assert states(before) == {"a": "completed", "b": "failed", **dict.fromkeys("cde", "completed")}
    stage.failing.clear()
    stage.done.clear()
    record = await retried(api, run_id)
    assert record["status"] == "completed"
    assert sorted(stage.done) == ["b", "c", "d", "e", "writer"]
    after = {one["id"]: one["run_id"] for one in (await planned(api, run_id))["nodes"]}
    same = [one["id"] for one in before["nodes"] if after[one["id"]] == one["run_id"]]
    assert same == ["a", "b"]


async def test_a_cancelled_run_goes_on_where_it_was(api, fleet, stage):
    stage.held = {"b"}
    run_id = await submitted(api)
    async with asyncio.timeout(10):
        await stage.reached.wait()
        while states(await planned(api, run_id))["a"] != "completed":
            await fleet.until(run_id, "running")
    await api.client.post(f"{RUNS}/{run_id}/cancel")
    plan = await planned(api, run_id)
    assert states(plan) == {"a": "completed", **dict.fromkeys("bcde", "cancelled")}
    stage.gate.set()
    record = await retried(api, run_id)
    assert record["status"] == "completed"
    assert (stage.done.count("a"), stage.done.count("b")) == (1, 2)


async def test_a_retry_from_a_step_makes_later_subtasks_anew(api, fleet, stage):
    stage.failing = {"writer"}
    run_id = await submitted(api)
    record = await ended(api, run_id)
    assert (record["status"], record["error"]["code"]) == ("incomplete", "tool_failed")
    stage.failing.clear()
    stage.done.clear()
    record = await retried(api, run_id)
    assert (record["status"], stage.done) == ("completed", ["writer"])

    stage.failing = {"writer"}
    run_id = await submitted(api)
    await ended(api, run_id)
    before = {one["id"]: one["run_id"] for one in (await planned(api, run_id))["nodes"]}
    stage.failing.clear()
    stage.done.clear()
    record = await retried(api, run_id, from_step="subtask:e")
    assert record["status"] == "completed"
    assert {"e", "writer"} <= set(stage.done) <= {"c", "d", "e", "writer"}
    after = {one["id"]: one["run_id"] for one in (await planned(api, run_id))["nodes"]}
    assert (after["a"], after["b"]) == (before["a"], before["b"])
    assert after["e"] != before["e"]
    child = await api.client.post(f"{RUNS}/{after['e']}/retry")
    assert (child.status_code, child.json()["code"]) == (409, "conflict")


async def test_the_short_route_starts_an_orchestrator(api, fleet):
    path = "/api/v1/workflows/orchestrate"
    headers = {"Idempotency-Key": "once"}
    first = await api.client.post(path, json={"goal": "the goal"}, headers=headers)
    again = await api.client.post(path, json={"goal": "the goal"}, headers=headers)
    run_id = first.json()["workflow_id"]
    assert (first.status_code, first.json()["status"]) == (202, "pending")
    assert first.headers["location"] == f"/api/v1/workflows/{run_id}"
    assert (again.json(), again.headers["idempotency-replayed"]) == (first.json(), "true")
    await ended(api, run_id)
    shown = (await api.client.get(f"/api/v1/workflows/{run_id}")).json()
    assert (shown["workflow_type"], shown["status"]) == ("orchestrator", "completed")
    for wrong in ({}, {"goal": ""}, {"goal": "x", "depth": "deep"}, {"goal": "x" * 4001}):
        response = await api.client.post(path, json=wrong)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
