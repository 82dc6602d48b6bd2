"""A model in circles, on real workers: a death does not give it a fresh start."""

import asyncio
from collections.abc import Callable

import orjson
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from posthouse.agents.catalogue import library as agents
from posthouse.agents.loop import AgentLoop
from posthouse.agents.stall import TURNS_WITHOUT_PROGRESS
from posthouse.errors import ToolFailed
from posthouse.llm.messages import AssistantMessage, Completion, ModelRequest
from posthouse.llm.retry import RetryingProvider
from posthouse.llm.routed import one_model
from posthouse.runs.model import Status
from posthouse.storage import keys
from posthouse.telemetry import Metrics
from posthouse.testing.fleet import LocalFleet
from posthouse.testing.provider import ScriptedProvider, call, call_tools, say
from posthouse.tools.catalogue import library as tools
from posthouse.tools.model import Page, Resources, SearchHit
from posthouse.workflows.library.research import research

FRESH = 2  # one search, one page
BOUND = FRESH + TURNS_WITHOUT_PROGRESS
PAGE = "corpus://horses.md"


class OnePage:
    """All that there is to find and to read."""

    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        return (SearchHit(title="Horses", url=PAGE, snippet="Fast."),)

    async def read(self, address: str) -> Page:
        if address != PAGE:
            raise ToolFailed("there is no such page", kind="not_found")
        return Page(address=PAGE, title="Horses", text="Horses are fast.")


class Circling:
    """Searches, reads, then searches in new words for ever; hangs once, in the turn that it is told."""

    def __init__(self, hangs_in: int) -> None:
        self.hangs_in = hangs_in
        self.reached = asyncio.Event()

    async def __call__(self, request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        turn = sum(isinstance(message, AssistantMessage) for message in request.messages) + 1
        if turn == self.hangs_in and not self.reached.is_set():
            self.reached.set()
            await asyncio.Event().wait()
        if not request.tools:
            return say(f"# Horses\n\nFast [[1]]({PAGE}).")
        if turn == FRESH:
            return call_tools(call("extract_content", {"url": PAGE}, f"c{turn}"))
        return call_tools(call("search_web", {"query": f"horses {turn}"}, f"c{turn}"))


@pytest.mark.guarantee("G2")
@pytest.mark.parametrize("dies_in", [3, 5, 6, 7])
async def test_a_looping_model_ends_incomplete_whichever_turn_its_worker_dies_in(
    redis: Redis, valkey_url: str, dies_in: int
) -> None:
    model = Circling(dies_in)
    provider = ScriptedProvider([model] * 20)
    resources = Resources(search=OnePage(), pages=OnePage())
    runner = AgentLoop(
        one_model(RetryingProvider(provider), "m"), tools(), resources, Metrics(CollectorRegistry())
    )
    async with LocalFleet(
        valkey_url, [research], agents=agents(), runner=runner, lease_seconds=0.6
    ) as fleet:
        doomed = fleet.worker()
        run_id = await fleet.submit("research", '{"topic":"horses","depth":"deep"}')
        await asyncio.wait_for(model.reached.wait(), 10)
        fleet.worker()
        await fleet.dead(doomed)
        record = await fleet.ended(run_id)

        assert (record.status, record.epoch) == (Status.INCOMPLETE, 2)
        assert record.error is not None
        assert record.error.code == "loop_detected"
        assert "circles" in record.error.message
        assert record.output["report"].startswith("# Horses\n\nFast")
        assert [source["address"] for source in record.output["sources"]] == [PAGE]
        kinds = await fleet.events(run_id)
        assert kinds.count("turn.completed") <= BOUND
        assert kinds.count("stall.detected") == 3
        entries = await redis.xrange(keys.events(run_id))
        stalls = [orjson.loads(f[b"data"]) for _, f in entries if f[b"type"] == b"stall.detected"]
        assert [(stall["pattern"], stall["action"]) for stall in stalls] == [
            ("repeated_results", "nudged"),
            ("repeated_results", "blocked"),
            ("repeated_results", "stopped"),
        ]
        # Every request was sent once, but for the one that died.
        assert len(provider.requests) == kinds.count("turn.completed") + 1
