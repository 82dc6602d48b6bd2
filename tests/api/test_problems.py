import asyncio
import time

import httpx
import pytest
from pydantic import BaseModel, field_validator
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from api_app.main import build_app
from api_app.problems import TITLES
from posthouse.settings import Settings
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow

RUNS = "/api/v1/runs"


async def test_every_error_has_the_same_shape(client):
    answers = [
        (404, await client.get("/nothing")),
        (404, await client.get("/api/v1/runs/")),
        (404, await client.get("/api/v1/workflows/nothing")),
        (405, await client.put(RUNS)),
        (405, await client.post("/health/live")),
        (400, await client.post(RUNS, content=b"{")),
        (400, await client.get(RUNS, params={"limit": "x"})),
    ]
    for status, response in answers:
        body = response.json()
        assert response.status_code == status == body["status"]
        assert response.headers["content-type"] == "application/problem+json"
        assert body["type"] == f"urn:posthouse:problem:{body['code']}"
        assert body["title"] == TITLES[body["code"]]
        assert body["detail"]
        assert body["retryable"] is False
        assert body["instance"] == response.request.url.path
        assert body["request_id"] == response.headers["x-request-id"]


async def test_405_says_what_is_allowed(client):
    assert (await client.put(RUNS)).headers["allow"] == "GET, POST"


async def test_request_ids_are_taken_over_when_they_are_sane(client):
    for given, taken in (("abc-1.2:3_4", True), ("a b", False), ("x" * 65, False), ("", False)):
        response = await client.get("/health/live", headers={"X-Request-Id": given})
        assert (response.headers["x-request-id"] == given) is taken
        assert response.headers["x-content-type-options"] == "nosniff"


class Broken(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def fail(cls, value: str) -> str:
        raise RuntimeError("secret in a trace")


@workflow("broken")
async def broken(ctx: RunContext, request: Broken) -> Broken:
    """Fails where nobody expects it."""
    return request


async def test_what_nobody_expected_is_a_500_without_details(settings, redis):
    app = build_app(settings, {"broken": broken})
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            wanted = {"workflow": "broken", "input": {"text": "x"}}
            with capture_logs(processors=[merge_contextvars]) as lines:
                response = await client.post(RUNS, json=wanted)

    assert (response.status_code, response.json()["code"]) == (500, "internal")
    [line] = [line for line in lines if line["event"] == "request_failed"]
    assert line["request_id"] == response.headers["x-request-id"]
    assert "secret" not in response.text


async def test_every_log_line_of_a_request_has_its_id(client):
    wanted = {"workflow": "echo", "input": {"text": "hi"}}
    ids = [f"mine-{number}" for number in range(3)]
    with capture_logs(processors=[merge_contextvars]) as lines:
        answers = await asyncio.gather(
            *(client.post(RUNS, json=wanted, headers={"X-Request-Id": one}) for one in ids)
        )

    accepted = {line["request_id"]: line["run_id"] for line in lines}
    assert accepted == {one: answers[ids.index(one)].json()["run_id"] for one in ids}


async def test_of_many_errors_the_first_are_listed(client):
    fields = {"x" * 5_000 + str(number): 1 for number in range(15)}
    wanted = {"workflow": "echo", "input": {"text": "hi"} | fields}
    some = (await client.post(RUNS, json=wanted)).json()
    wanted["input"] |= {str(number): 1 for number in range(10)}
    many = (await client.post(RUNS, json=wanted)).json()
    metadata = {str(number): 1 for number in range(16)} | {"y" * 5_000: 1}
    framework = (await client.post(RUNS, json=wanted | {"metadata": metadata})).json()

    assert (len(some["errors"]), len(many["errors"])) == (15, 20)
    assert "errors are listed" not in some["detail"]
    assert many["detail"].endswith("(the first 20 of 25 errors are listed)")
    for body in (some, many, framework):
        assert {len(error["location"]) <= 200 for error in body["errors"]} == {True}


async def test_what_does_not_fit_is_said_in_plain_words(client):
    async def said(body: object) -> dict[str, str]:
        errors = (await client.post(RUNS, json=body)).json()["errors"]
        return {error["location"]: error["message"] for error in errors}

    wanted = {"workflow": "echo", "input": {"text": "hi"}}
    assert await said([]) == {"body": "must be an object"}
    assert await said(wanted | {"budget": 3, "metadata": 3, "colour": "blue"}) == {
        "budget": "must be an object",
        "metadata": "must be an object",
        "colour": "there is no such field",
    }
    assert await said(wanted | {"not_before": "2026-12-24T09:00:00"}) == {
        "not_before": "needs an offset, such as Z"
    }
    assert await said(wanted | {"input": {"text": "hi", "colour": "blue"}}) == {
        "input.colour": "there is no such field"
    }
    assert await said(wanted | {"input": 3}) == {"input": "must be an object"}


async def test_head_is_a_clean_405(api):
    for path in ("/health/live", RUNS, f"{RUNS}/01ARZ3NDEKTSV4RRFFQ69G5FAV/stream"):
        response = await api.client.head(path)
        assert response.status_code == 405
        assert "GET" in response.headers["allow"]
        assert response.headers["content-type"] == "application/problem+json"
        assert response.content == b""


EVERYTHING = [
    ("POST", RUNS), ("GET", RUNS), ("GET", f"{RUNS}/01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    ("GET", f"{RUNS}/01ARZ3NDEKTSV4RRFFQ69G5FAV/stream"),
    ("GET", f"{RUNS}/01ARZ3NDEKTSV4RRFFQ69G5FAV/events"),
    ("GET", f"{RUNS}/01ARZ3NDEKTSV4RRFFQ69G5FAV/steps"),
    ("GET", f"{RUNS}/01ARZ3NDEKTSV4RRFFQ69G5FAV/wait"),
    ("DELETE", f"{RUNS}/01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    ("GET", "/api/v1/workflows/01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    ("GET", "/api/v1/workflows/01ARZ3NDEKTSV4RRFFQ69G5FAV/stream"),
    ("GET", "/api/v1/inputs"),
    ("GET", "/health/ready"),
]  # fmt: skip


async def test_an_event_source_is_told_to_come_back(valkey, serve, build):
    settings = Settings(redis_url=valkey.url, _env_file=None)
    async with serve(build(settings)) as api:
        valkey.stop()
        for method, path in EVERYTHING:
            wanted = {"Accept": "text/event-stream"}
            response = await api.client.request(method, path, headers=wanted)
            if path.endswith("/stream"):
                assert response.headers["content-type"].startswith("text/event-stream")
                assert (response.status_code, response.text) == (200, "retry: 2000\n\n")
            elif method != "POST":
                assert response.status_code == 503


async def timed(api, method: str, path: str, body: object) -> tuple[str, httpx.Response, float]:
    began = time.monotonic()
    response = await api.client.request(method, path, json=body if method == "POST" else None)
    return path, response, time.monotonic() - began


@pytest.mark.parametrize("how", ["stop", "freeze", "fill", "replicate"])
async def test_without_redis_every_route_is_a_503_within_a_second(valkey, serve, build, how):
    settings = Settings(redis_url=valkey.url, _env_file=None)
    async with serve(build(settings)) as api:
        assert (await api.client.get("/health/ready")).status_code == 200
        redis = api.app.state.service.redis
        match how:
            case "stop":
                valkey.stop()
            case "freeze":
                valkey.freeze()
            case "fill":
                await redis.config_set("maxmemory", "1")
            case "replicate":
                await redis.replicaof("127.0.0.1", 1)
        routes = EVERYTHING if how in ("stop", "freeze") else [EVERYTHING[0], EVERYTHING[-1]]
        wanted = {"workflow": "echo", "input": {"text": "hi"}}
        for path, response, took in await asyncio.gather(
            *(timed(api, method, path, wanted) for method, path in routes)
        ):
            assert (response.status_code, response.json()["code"]) == (503, "unavailable"), path
            assert response.json()["retryable"] is True
            assert response.headers["retry-after"] == "1"
            assert took < 1.0, (path, took)
        assert (await api.client.get("/health/live")).status_code == 200
        if how == "freeze":
            valkey.thaw()
        if how == "stop":
            valkey.start()
        if how in ("stop", "freeze"):
            async with asyncio.timeout(10):
                while (await api.client.post(RUNS, json=wanted)).status_code != 202:
                    pass
