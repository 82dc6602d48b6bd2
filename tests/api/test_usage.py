"""Budgets and models of a run over HTTP, and what it took."""

import json
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from posthouse.ids import new_run_id
from posthouse.settings import Settings
from posthouse.storage import keys

RUNS = "/api/v1/runs"
WANTED = {"workflow": "echo", "input": {"text": "hi"}}
BUDGET = {"usd": 0.01, "tokens": 5000, "seconds": 60, "on_exceeded": "ask"}


async def accepted(client: httpx.AsyncClient, **fields: object) -> str:
    response = await client.post(RUNS, json=WANTED | fields)
    assert response.status_code == 202, response.text
    return str(response.json()["run_id"])


async def test_a_budget_is_kept_with_the_run_and_shown(
    client: httpx.AsyncClient, redis: Redis
) -> None:
    run_id = await accepted(client, budget=BUDGET)
    await redis.hset(
        keys.budget(run_id),
        mapping={"spent_nano_usd": 2_500_000, "reserved_tokens": 40, "lost_nano_usd": 5},
    )
    shown = (await client.get(f"{RUNS}/{run_id}")).json()["budget"]
    assert shown["limits"] == {
        "nano_usd": 10_000_000, "usd": "0.010000000", "tokens": 5000, "seconds": 60.0,
    }  # fmt: skip
    assert (shown["spent"]["usd"], shown["spent"]["seconds"]) == ("0.002500000", 0.0)
    assert (shown["reserved"]["tokens"], shown["left"]["tokens"]) == (40, 4960)
    assert (shown["lost"]["nano_usd"], shown["percent"]) == (5, 25)
    assert shown["on_exceeded"] == "ask"


@pytest.mark.parametrize("budget", [None, {}, {"on_exceeded": "fail"}])
async def test_without_a_limit_there_is_no_budget(
    client: httpx.AsyncClient, redis: Redis, budget: object
) -> None:
    run_id = await accepted(client, budget=budget)
    assert await redis.exists(keys.budget(run_id)) == 0
    assert (await client.get(f"{RUNS}/{run_id}")).json()["budget"] is None


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"budget": {"usd": -1}}, "budget.usd"),
        ({"budget": {"usd": "1"}}, "budget.usd"),
        ({"budget": {"tokens": 1.5}}, "budget.tokens"),
        ({"budget": {"euros": 1}}, "budget.euros"),
        ({"budget": 5}, "budget"),
        ({"models": {"fast": "at:m"}}, "models.fast"),
        ({"models": {"medium": ["at:m"]}}, "models.medium"),
        ({"models": {"fast": ["at:m", "no reference"]}}, "models.fast.1"),
        ({"models": {"fast": []}}, "models.fast"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    client: httpx.AsyncClient, redis: Redis, fields: dict[str, object], where: str
) -> None:
    response = await client.post(RUNS, json=WANTED | fields)
    assert response.status_code == 400
    assert [error["location"] for error in response.json()["errors"]] == [where]
    assert await redis.keys("run:*") == []


async def test_where_the_endpoints_are_known_a_wrong_one_is_refused_at_once(
    valkey_url: str, redis: Redis, build: Callable[..., FastAPI]
) -> None:
    settings = Settings(
        redis_url=valkey_url, openai_base_url="http://127.0.0.1:1/v1", endpoints='[{"name": "at"}]',
        _env_file=None,
    )  # fmt: skip
    app = build(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await accepted(client, models={"fast": ["at:m", "openai:m"]})
        schedule = {"cron": "0 9 * * *", "time_zone": "UTC"}
        for path, further in ((RUNS, {}), ("/api/v1/schedules", schedule)):
            models = {"smart": ["openai:m", "elsewhere:m"]}
            response = await client.post(path, json=WANTED | further | {"models": models})
            assert response.status_code == 400
            message = "there is no endpoint 'elsewhere'; there is: at, openai"
            assert response.json()["errors"] == [{"location": "models.smart.1", "message": message}]


async def test_models_of_its_own_go_with_the_run(client: httpx.AsyncClient, redis: Redis) -> None:
    run_id = await accepted(client, models={"smart": ["at:m", "at:n:8b", "at:m"]})
    assert json.loads(await redis.hget(keys.run(run_id), "models")) == {
        "smart": ["at:m", "at:n:8b"]
    }
    assert (await client.get(f"{RUNS}/{run_id}")).json()["models"] == {"smart": ["at:m", "at:n:8b"]}


async def test_budget_and_models_are_part_of_what_a_key_stands_for(
    client: httpx.AsyncClient,
) -> None:
    def post(**fields: object):
        return client.post(RUNS, json=WANTED | fields, headers={"Idempotency-Key": "k"})

    first = await post(budget={"tokens": 5}, models={"fast": ["at:m"]})
    again = await post(models={"fast": ["at:m"]}, budget={"tokens": 5})
    assert (first.json(), first.status_code) == (again.json(), again.status_code)
    for other in ({"budget": {"tokens": 6}}, {"budget": {"tokens": 5}}, {}):
        assert (await post(**other)).status_code == 422


def outcome(agent: str, model: str, tokens: int, nano: int, **more: int) -> str:
    usage = {"model_calls": 1, "input_tokens": tokens, "nano_usd": nano} | more
    head = {"seq": 1, "epoch": 1, "time": 5, "agent": agent, "result": "x"}
    return json.dumps(head | {"usage": usage, "by_model": {model: usage}})


async def test_usage_of_a_tree_by_agent_model_and_subtask(
    client: httpx.AsyncClient, redis: Redis
) -> None:
    root = await accepted(client)
    child, other = sorted(new_run_id() for _ in range(2))
    for run_id, parent in ((child, root), (other, child)):
        record = {"parent": parent, "subtask": "dig", "workflow": "agent", "status": "running"}
        fields = {"tenant": "default", "root": root, "version": 1, "input": "{}", "metadata": "{}"}
        times = {"epoch": 1, "seq": 1, "dispatch": 1, "created_at": 1, "updated_at": 1}
        await redis.hset(keys.run(run_id), mapping=record | fields | times)
        await redis.sadd(keys.tree(root), run_id)
    await redis.hset(keys.journal(root), "plan", outcome("planner", "at:m", 10, 100))
    await redis.hset(keys.journal(child), "a/turn:1", outcome("scout", "at:m", 5, 50))
    await redis.hset(keys.archive(child), "1/a/turn:1", outcome("scout", "at:n", 7, 70))
    waste = {"wasted_tokens": 3, "wasted_nano_usd": 30, "unpriced_calls": 1}
    await redis.hset(keys.journal(other), "a/turn:1", outcome("scout", "at:n", 1, 0, **waste))
    tool = {"seq": 1, "epoch": 1, "time": 5, "agent": "scout", "usage": {"tool_calls": 1}}
    await redis.hset(keys.journal(other), "a/turn:1/tool:x", json.dumps(tool))

    body = (await client.get(f"{RUNS}/{root}/usage")).json()
    assert (body["run_id"], body["budget"], body["wasted"]["crashes"]) == (root, None, None)
    total = body["total"]
    assert (total["model_calls"], total["tool_calls"], total["input_tokens"]) == (4, 1, 23)
    assert (total["nano_usd"], total["usd"], total["usd_complete"]) == (220, "0.000000220", False)
    assert [(row["agent"], row["nano_usd"]) for row in body["by_agent"]] == [
        ("planner", 100), ("scout", 120),
    ]  # fmt: skip
    assert [(row["model"], row["nano_usd"], row["usd_complete"]) for row in body["by_model"]] == [
        ("at:m", 150, True), ("at:n", 70, False), (None, 0, True),
    ]  # fmt: skip
    rows = {row["run_id"]: row for row in body["by_subtask"]}
    assert {run_id: row["nano_usd"] for run_id, row in rows.items()} == {
        root: 100, child: 120, other: 0,
    }  # fmt: skip
    assert (rows[root]["subtask"], rows[other]["subtask"], rows[other]["parent"]) == (
        None, "dig", child,
    )  # fmt: skip
    assert body["wasted"]["tries"] == {"tokens": 3, "nano_usd": 30, "usd": "0.000000030"}
    assert body["wasted"]["retries"]["nano_usd"] == 70

    below = (await client.get(f"{RUNS}/{child.lower()}/usage")).json()
    assert [row["run_id"] for row in below["by_subtask"]] == [child, other]
    assert below["total"]["nano_usd"] == 120


async def test_usage_of_no_run_is_not_found(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"{RUNS}/{new_run_id()}/usage")).status_code == 404
