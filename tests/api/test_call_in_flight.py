"""Cancelling over HTTP while a model is asked: the whole road, from the request to the model's connection."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from api_app.main import build_app
from posthouse.agents.loop import AgentLoop
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.errors import ToolFailed
from posthouse.journal.model import Prompt
from posthouse.llm.providers.openai import openai_provider
from posthouse.llm.retry import RetryingProvider
from posthouse.llm.routed import one_model
from posthouse.telemetry import Metrics
from posthouse.testing.fleet import LocalFleet
from posthouse.tools.model import Page, Resources, SearchHit
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

RUNS = "/api/v1/runs"
SCOUT = Agent(AgentSpec("scout", "Looks.", "scout.v1"), Prompt("scout", 1, "You look."))


class Given(BaseModel):
    pass


class Got(BaseModel):
    text: str


async def ask(ctx: RunContext, given: Given) -> Got:
    return Got(text=(await ctx.agent("scout", "Look.")).text)


FLOW = Workflow("ask", 1, "", Given, Got, ask)


class NoResources:
    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        raise ToolFailed("nothing here", kind="unexpected")

    async def read(self, address: str) -> Page:
        raise ToolFailed("nothing here", kind="unexpected")


class SilentModel:
    """Takes requests and never answers; says when it was asked, and when whoever asked has gone."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        try:
            while await reader.read(65_536):
                pass
        except ConnectionError:
            pass
        self.left.set()
        writer.close()


@pytest.fixture
async def model() -> AsyncIterator[tuple[SilentModel, str]]:
    silent = SilentModel()
    async with await asyncio.start_server(silent.connected, "127.0.0.1", 0) as server:
        yield silent, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


@pytest.mark.guarantee("G9")
async def test_cancel_over_http_drops_the_call_to_the_model(
    settings, redis, valkey_url, serve, model
):
    silent, url = model
    none = NoResources()
    provider = openai_provider(api_key=None, base_url=url)
    resources = Resources(search=none, pages=none)
    metrics = Metrics(CollectorRegistry())
    runner = AgentLoop(one_model(RetryingProvider(provider), "m"), {}, resources, metrics)
    fleet = LocalFleet(valkey_url, [FLOW], agents={"scout": SCOUT}, runner=runner, lease_seconds=60)
    async with serve(build_app(settings, {"ask": FLOW})) as api, fleet:
        fleet.worker(slots=1)
        wanted = {"workflow": "ask", "input": {}}
        run_id = (await api.client.post(RUNS, json=wanted)).json()["run_id"]
        async with asyncio.timeout(10):
            await silent.asked.wait()
        async with asyncio.timeout(2):  # the heartbeat, every 20 s here, is not what does it
            response = await api.client.post(f"{RUNS}/{run_id}/cancel")
            await silent.left.wait()
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        record = (await api.client.get(f"{RUNS}/{run_id}/wait")).json()
        assert (record["status"], record["steps"]) == ("cancelled", [])
    await provider.aclose()
