"""The inbox and the answers as people's programs see them, with workers that wait for them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from api_app.main import build_app
from posthouse.ids import new_run_id
from posthouse.inputs.model import Decision, Kind, OnTimeout, Request
from posthouse.runs.model import Status
from posthouse.settings import Settings
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

INPUTS = "/api/v1/inputs"
RUNS = "/api/v1/runs"
NOWHERE = f"{new_run_id()}-0123456789abcdef"


class Asks(BaseModel):
    """How many questions a run asks at once, of what kind, and whether a child asks them."""

    count: int = 1
    kind: Kind = Kind.QUESTION
    expires_in: float | None = None
    on_timeout: OnTimeout = OnTimeout.WAIT
    below: bool = False


class Said(BaseModel):
    answers: list[Any]


class Paint(BaseModel):
    colour: str = Field(pattern="^[a-z]+$", max_length=20)
    coats: int = Field(1, ge=1, le=3)


APPROVAL = Request(
    kind=Kind.APPROVAL,
    question="clerk wants to call send.",
    decisions=tuple(Decision),
    form=Paint.model_json_schema(),
    arguments={"colour": "red"},
    tool="send",
    agent="clerk",
    digest="d1",
)


async def body(ctx: RunContext, given: Asks) -> Said:
    if given.below:
        child = await ctx.spawn("below", "asks", given.model_copy(update={"below": False}))
        return Said(answers=[(await ctx.join(child)).output])
    if given.kind is Kind.APPROVAL:
        return Said(answers=[(await ctx.request("may", APPROVAL)).model_dump(mode="json")])
    terms = {"expires_in": given.expires_in, "on_timeout": given.on_timeout}
    asked = [
        ctx.ask(f"q{n}", f"Which colour, {n}?", form=Paint, **terms) for n in range(given.count)
    ]
    return Said(answers=[answer.value for answer in await ctx.gather(*asked)])


FLOW = Workflow("asks", 1, "", Asks, Said, body)


@pytest.fixture
async def fleet(valkey_url, redis) -> AsyncIterator[LocalFleet]:
    async with LocalFleet(valkey_url, [FLOW], lease_seconds=6) as opened:
        opened.worker(slots=2)
        yield opened


@pytest.fixture
async def client(valkey_url, redis) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(Settings(redis_url=valkey_url, _env_file=None), {"asks": FLOW})
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as opened,
    ):
        yield opened


async def waiting(client, fleet, **given) -> str:
    """The id of a run that waits for its answers."""
    response = await client.post(RUNS, json={"workflow": "asks", "input": given})
    run_id = response.json()["run_id"]
    await fleet.until(run_id, Status.RUNNING if given.get("below") else Status.AWAITING_INPUT)
    return run_id


async def listed(client, **query) -> list[dict[str, Any]]:
    return (await client.get(INPUTS, params=query)).json()["inputs"]


def refused(response, status: int, code: str) -> dict[str, Any]:
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json"
    return problem


async def test_a_question_is_listed_shown_answered_and_goes_on(client, fleet):
    run_id = await waiting(client, fleet)
    [asked] = await listed(client)
    expected = {
        "run_id": run_id, "root": run_id, "step": "q0", "agent": None, "tool": None, "kind": "question",
        "question": "Which colour, 0?", "decisions": ["respond"], "form": Paint.model_json_schema(),
        "arguments": None, "on_timeout": "wait", "default": None, "state": "open", "answer": None,
        "expires_at": None,
    }  # fmt: skip
    assert {name: asked[name] for name in expected} == expected
    where = f"{INPUTS}/{asked['input_id']}"
    assert (await client.get(where.lower())).json() == asked
    assert (await client.get(f"{RUNS}/{run_id}")).json()["open_inputs"] == [asked["input_id"]]

    answer = {"value": {"coats": 2, "colour": "blue"}}
    first = await client.post(where, json=answer)
    again = await client.post(where, json={"value": {"colour": "blue", "coats": 2}})
    assert (first.status_code, first.json()["state"]) == (200, "answered")
    assert first.json()["answer"]["value"] == answer["value"]
    assert (again.status_code, again.json()) == (200, first.json())
    refused(await client.post(where, json={"value": {"colour": "red"}}), 409, "conflict")
    record = await fleet.ended(run_id)
    assert record.output == {"answers": [answer["value"]]}
    assert await listed(client) == []
    assert (await client.get(f"{RUNS}/{run_id}")).json()["open_inputs"] == []
    assert (await client.get(where)).json()["state"] == "answered"
    refused(await client.get(f"{INPUTS}/{NOWHERE}"), 404, "not_found")
    refused(await client.post(f"{INPUTS}/nothing", json=answer), 404, "not_found")


async def test_an_answer_that_does_not_fit_says_where(client, fleet):
    run_id = await waiting(client, fleet)
    wrong = {"colour": "BLUE", "coats": 9}
    problem = refused(
        await client.post(f"{RUNS}/{run_id}/input", json={"value": wrong}), 422, "invalid_request"
    )
    assert {error["location"] for error in problem["errors"]} == {"value.colour", "value.coats"}
    assert problem["run_id"] == run_id
    for answer, location in (
        ({"value": {}}, "value.colour"),
        ({"value": None}, "value"),
        ({}, "value"),
        ({"decision": "respond"}, "value"),
        ({"decision": "approve"}, "decision"),
        ({"value": {"colour": "red"}, "arguments": {}}, "arguments"),
    ):
        response = await client.post(f"{RUNS}/{run_id}/input", json=answer)
        problem = refused(response, 422, "invalid_request")
        assert problem["errors"][0]["location"] == location, answer
    for answer in ({"decision": "maybe"}, {"other": 1}, [], {"comment": "x" * 2001}):
        response = await client.post(f"{RUNS}/{run_id}/input", json=answer)
        refused(response, 400, "invalid_request")
    [asked] = await listed(client)
    assert asked["state"] == "open"


@pytest.mark.parametrize(
    ("answer", "decision", "field", "value"),
    [
        ({"decision": "approve", "comment": "Fine."}, "approve", "comment", "Fine."),
        ({"decision": "edit", "arguments": {"colour": "blue"}}, "edit", "arguments", {"colour": "blue"}),
        ({"decision": "reject", "comment": "No."}, "reject", "comment", "No."),
        ({"decision": "respond", "value": "I did it."}, "respond", "value", "I did it."),
    ],
)  # fmt: skip
async def test_an_approval_takes_each_decision(client, fleet, answer, decision, field, value):
    run_id = await waiting(client, fleet, kind="approval")
    [asked] = await listed(client, kind="approval")
    assert (asked["tool"], asked["agent"]) == ("send", "clerk")
    assert (asked["arguments"], asked["digest"]) == ({"colour": "red"}, "d1")
    where = f"{INPUTS}/{asked['input_id']}"
    for unfit in (
        {"value": "yes"},
        {"decision": "edit"},
        {"decision": "edit", "arguments": {"colour": 1}},
        {"decision": "respond", "value": {"colour": "red"}},
        {"decision": "approve", "value": 1},
    ):
        refused(await client.post(where, json=unfit), 422, "invalid_request")
    refused(await client.post(where, json=answer | {"digest": "d0"}), 409, "conflict")
    response = await client.post(where, json=answer | {"digest": "d1"})
    assert (response.status_code, response.json()["answer"]["decision"]) == (200, decision)
    [given] = (await fleet.ended(run_id)).output["answers"]
    assert (given["decision"], given[field]) == (decision, value)


async def test_several_open_questions_are_listed_and_none_is_said(client, fleet):
    run_id = await waiting(client, fleet, count=3)
    answer = {"value": {"colour": "red"}}
    problem = refused(await client.post(f"{RUNS}/{run_id}/input", json=answer), 409, "conflict")
    ids = {one["input_id"] for one in await listed(client)}
    assert {error["location"] for error in problem["errors"]} == ids
    for one in ids:
        assert (await client.post(f"{INPUTS}/{one}", json=answer)).status_code == 200
    await fleet.ended(run_id)
    problem = refused(await client.post(f"{RUNS}/{run_id}/input", json=answer), 409, "conflict")
    assert "completed" in problem["detail"]
    nobody = await client.post(f"{RUNS}/{new_run_id()}/input", json=answer)
    refused(nobody, 404, "not_found")


async def test_a_childs_question_is_answered_at_its_root_or_at_itself(client, fleet):
    roots = [await waiting(client, fleet, below=True) for _ in range(2)]
    async with asyncio.timeout(10):
        while len(asked := await listed(client)) < 2:
            pass
    assert {one["root"] for one in asked} == set(roots)
    by_root = {one["root"]: one for one in asked}
    assert await listed(client, run_id=roots[0]) == [by_root[roots[0]]]
    child = by_root[roots[1]]["run_id"]
    assert await listed(client, run_id=child) == [by_root[roots[1]]]
    answer = {"value": {"colour": "red"}}
    assert (await client.post(f"{RUNS}/{roots[0]}/input", json=answer)).status_code == 200
    assert (await client.post(f"{RUNS}/{child}/input", json=answer)).status_code == 200
    for root in roots:
        assert (await fleet.ended(root)).output == {"answers": [{"answers": [answer["value"]]}]}


async def test_the_tutorials_route_answers_too(client, fleet):
    run_id = await waiting(client, fleet)
    where = f"/api/v1/workflows/{run_id}/input"
    problem = refused(await client.post(where, json={"value": 1}), 422, "invalid_request")
    assert (problem["error"], problem["message"]) == ("invalid_request", problem["detail"])
    response = await client.post(where, json={"value": {"colour": "red"}})
    assert (response.status_code, response.json()["workflow_id"]) == (200, run_id)
    assert (await fleet.ended(run_id)).status is Status.COMPLETED
    stream = (await client.get(f"/api/v1/workflows/{run_id}/stream")).text
    assert stream.count('"status":"awaiting_input"') == 1


async def test_the_inbox_is_read_page_by_page(client, fleet):
    runs = [await waiting(client, fleet, count=2) for _ in range(3)]
    await waiting(client, fleet, kind="approval")
    seen, cursor = [], None
    for _ in range(3):
        query = {"limit": 4, "kind": "question"} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(INPUTS, params=query)).json()
        seen += page["inputs"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert cursor is None
    assert [one["run_id"] for one in seen] == [run for run in sorted(runs) for _ in range(2)]
    first = (await client.get(INPUTS, params={"run_id": runs[0], "limit": 1})).json()
    then = {"run_id": runs[0], "limit": 1, "cursor": first["next_cursor"]}
    rest = (await client.get(INPUTS, params=then)).json()
    assert len({first["inputs"][0]["input_id"], rest["inputs"][0]["input_id"]}) == 2
    assert rest["next_cursor"] is None
    refused(await client.get(INPUTS, params={"cursor": "x"}), 400, "invalid_request")
    refused(await client.get(INPUTS, params={"kind": "x"}), 400, "invalid_request")


async def test_expired_and_ended_take_no_answer(client, fleet):
    response = await client.post(
        RUNS, json={"workflow": "asks", "input": {"expires_in": 0.05, "on_timeout": "reject"}}
    )
    run_id = response.json()["run_id"]
    record = await fleet.ended(run_id)
    assert record.output == {"answers": [None]}
    other = await waiting(client, fleet)
    [asked] = await listed(client)
    await client.post(f"{RUNS}/{other}/cancel")
    answer = {"value": {"colour": "red"}}
    refused(await client.post(f"{INPUTS}/{asked['input_id']}", json=answer), 409, "conflict")
    part = asked["input_id"].partition("-")[2]  # the same step of another run
    refused(await client.post(f"{INPUTS}/{run_id}-{part}", json=answer), 410, "gone")
    assert (await client.get(f"{INPUTS}/{run_id}-{part}")).json()["state"] == "expired"


async def test_of_two_answers_at_the_same_instant_one_wins(client, fleet):
    run_id = await waiting(client, fleet, count=100)
    asked = [one["input_id"] for one in await listed(client, limit=100)]
    assert len(asked) == 100

    async def race(input_id: str) -> tuple[int, ...]:
        answers = [{"value": {"colour": colour}} for colour in ("red", "blue")]
        both = await asyncio.gather(
            *(client.post(f"{INPUTS}/{input_id}", json=answer) for answer in answers)
        )
        return tuple(sorted(response.status_code for response in both))

    ends = Counter([await race(input_id) for input_id in asked])
    assert ends == {(200, 409): 100}
    record = await fleet.ended(run_id)
    assert {one["colour"] for one in record.output["answers"]} <= {"red", "blue"}
    events = await fleet.events(run_id)
    assert (events.count("input.requested"), events.count("input.answered")) == (100, 100)


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)
PAINT = st.fixed_dictionaries(
    {"colour": st.sampled_from(["red", "blue", "RED", 5])}, optional={"coats": st.integers(0, 4)}
)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "decision": st.sampled_from([*Decision, None]),
        "value": JSON | PAINT,
        "arguments": JSON | PAINT,
        "comment": TEXT,
    },
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(answer=ANSWERS, kind=st.sampled_from(["question", "approval"]))
async def test_whatever_is_answered_nothing_breaks(client, fleet, answer, kind):
    open_now = {one["kind"]: one for one in await listed(client)}
    if kind not in open_now:
        await waiting(client, fleet, kind=kind)
        open_now = {one["kind"]: one for one in await listed(client)}
    where = f"{INPUTS}/{open_now[kind]['input_id']}"
    first = await client.post(where, json=answer)
    assert first.status_code in (200, 422), first.text
    again = await client.post(where, json=answer)
    assert again.status_code == first.status_code
    other = await client.post(where, json={"decision": "reject", "comment": "something else"})
    assert other.status_code in (200, 409, 422)
