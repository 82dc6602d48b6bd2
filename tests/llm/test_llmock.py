"""Against llmock, a model server written elsewhere that breaks on order and judges its clients."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from subprocess import PIPE
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict

from posthouse.agents.loop import AgentLoop
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.errors import ContentRefused, Fatal, ModelUnavailable, RunCode, RunFailed, ToolFailed
from posthouse.events.types import ModelRetrying
from posthouse.events.types import ToolFailed as ToolFailedEvent
from posthouse.journal.model import AgentAnswer, Parked, Prompt
from posthouse.llm.messages import ModelRequest, OutputShape, ToolOffer, UserMessage
from posthouse.llm.providers.openai import OpenAIProvider, openai_provider
from posthouse.llm.retry import RetryingProvider, RetryPolicy
from posthouse.llm.routed import one_model
from posthouse.telemetry import Metrics
from posthouse.testing.steps import MemorySteps
from posthouse.tools.define import tool
from posthouse.tools.model import Page, Resources, SearchHit

pytest.importorskip("llmock", reason="llmock is not installed: it comes with requirements/dev.txt")

# In a process of its own, as it sets up logging as it likes; it ends with its standard input.
SERVE = """
import sys
from llmock.testing import LLMockServer
with LLMockServer() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
# Short, as every wait here is a real one; a Retry-After is never cut short for it.
POLICY = RetryPolicy(attempts=3, shortest=0.1, longest=0.8, patience=5.0)
IDLE_SECONDS = 0.5


@tool
async def weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: Where.
    """
    return f"It rains in {city}."


@tool
async def add(first: int, second: int) -> int:
    """Adds two numbers.

    Args:
        first: One of them.
        second: The other one.
    """
    return first + second


class Nothing:
    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        raise ToolFailed("nothing here", kind="unexpected")

    async def read(self, address: str) -> Page:
        raise ToolFailed("nothing here", kind="unexpected")


class Peer:
    """The server's control over HTTP, a provider that talks to it, and agents on top."""

    def __init__(self, url: str, provider: OpenAIProvider, control: httpx.AsyncClient) -> None:
        self.url = url
        self.provider = provider
        self._control = control

    async def plan(self, *behaviors: dict[str, Any]) -> None:
        answer = await self._control.post("/scenario", json={"behaviors": behaviors})
        answer.raise_for_status()

    async def verdict(self) -> dict[str, Any]:
        answer = await self._control.get("/verdict")
        return dict(answer.json())

    async def requests(self) -> list[dict[str, Any]]:
        answer = await self._control.get("/requests")
        return list(answer.json()["requests"])

    async def agent(
        self, task: str = "What is the weather?", *, attempts: int = 3
    ) -> tuple[AgentAnswer, MemorySteps]:
        steps = MemorySteps()
        tools = {"weather": weather, "add": add}
        loop = AgentLoop(
            one_model(
                RetryingProvider(self.provider, replace(POLICY, attempts=attempts)), "gpt-mock"
            ),
            tools,
            Resources(search=Nothing(), pages=Nothing()),
            Metrics(CollectorRegistry()),
            timeout_seconds=20.0,
        )
        spec = AgentSpec("scout", "Looks.", "scout.v1", tools=tuple(tools))
        agent = Agent(spec, Prompt("scout", 1, "You look."))
        return await loop.run(steps, agent, key="scout", task=task, max_iterations=5), steps


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-c", SERVE]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


@pytest.fixture
async def peer(url: str) -> AsyncIterator[Peer]:
    provider = openai_provider(api_key=None, base_url=url + "/v1", idle_seconds=IDLE_SECONDS)
    async with httpx.AsyncClient(base_url=url + "/_llmock", timeout=10.0) as control:
        (await control.post("/reset")).raise_for_status()
        yield Peer(url, provider, control)
    await provider.aclose()


def fail(status: int, **more: Any) -> dict[str, Any]:
    return {"type": "fail", "status": status, **more}


def break_stream(kind: str, after: int = 2, **more: Any) -> dict[str, Any]:
    return {"type": "stream_fault", "kind": kind, "after_chunks": after, **more}


def retries(steps: MemorySteps) -> list[str]:
    return [d.event.code for d in steps.kept.events if isinstance(d.event, ModelRetrying)]


# The server does not see who stops reading an answer that is in the socket's buffer as a whole.
LONG_REPLY = {"type": "reply", "text": "word " * 20_000}

FAULTS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "429 and when to come back": ([fail(429, retry_after=0.3)], ["rate_limit"]),
    "429 twice": ([fail(429, retry_after=0.2, times=2)], ["rate_limit"] * 2),
    "500": ([fail(500)], ["server_error"]),
    "503 and when to come back": ([fail(503, retry_after=0.2)], ["server_error"]),
    "408": ([fail(408)], ["timeout"]),
    "slow first token": ([{"type": "slow_first_token", "seconds": 0.3}], []),
    "no first token": ([{"type": "slow_first_token", "seconds": 1.5}], ["timeout"]),
    "stall": ([break_stream("stall", stall_seconds=1.5)], ["timeout"]),
    "disconnect": ([break_stream("disconnect")], ["connection"]),
    "disconnect at once": ([break_stream("disconnect", 0)], ["connection"]),
    "truncated": ([break_stream("truncate")], ["connection"]),
    "malformed": ([break_stream("malformed"), LONG_REPLY], ["connection"]),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_run_completes_in_spite_of(peer: Peer, fault: str) -> None:
    behaviors, codes = FAULTS[fault]
    await peer.plan(*behaviors)
    answer, steps = await peer.agent()
    assert (answer.stopped, answer.turns) == (None, 2)
    assert answer.text
    assert "tool.completed" in steps.event_types
    assert retries(steps) == codes
    verdict = await peer.verdict()
    assert verdict["findings"] == []
    assert verdict["attempts"] == 2 + len(codes)


async def test_a_fault_in_each_turn(peer: Peer) -> None:
    in_turn = {"tools": True, "stream": True}
    await peer.plan(break_stream("truncate", match=in_turn), fail(429, retry_after=0.1))
    answer, steps = await peer.agent()
    assert answer.stopped is None
    assert sorted(retries(steps)) == ["connection", "rate_limit"]
    assert (await peer.verdict())["findings"] == []


@pytest.mark.parametrize(
    ("kind", "error"),
    [("malformed_arguments", "invalid_arguments"), ("unknown_tool", "unknown_tool")],
)
async def test_what_the_model_gets_wrong_it_is_told(peer: Peer, kind: str, error: str) -> None:
    await peer.plan({"type": "tool_fault", "kind": kind})
    answer, steps = await peer.agent()
    assert answer.stopped is None
    told = [d.event.error for d in steps.kept.events if isinstance(d.event, ToolFailedEvent)]
    assert told == [error]
    last = (await peer.requests())[-1]["body"]["messages"][-1]
    assert (last["role"], error in last["content"]) == ("tool", True)
    assert (await peer.verdict())["findings"] == []


async def test_a_tool_is_called_with_what_its_schema_asks_for(peer: Peer) -> None:
    call = {"name": "add", "arguments": {"first": 2, "second": 40}}
    await peer.plan({"type": "reply", "text": "I count.", "tool_calls": [call]})
    answer, _ = await peer.agent("Add two numbers")
    assert answer.stopped is None
    sent = (await peer.requests())[-1]["body"]["messages"]
    assert "42" in sent[-1]["content"]
    assert (await peer.verdict())["findings"] == []


async def test_a_long_retry_after_is_waited_for_without_a_worker(peer: Peer) -> None:
    await peer.plan(fail(429, retry_after=9, times=None))
    with pytest.raises(Parked) as parked:
        await peer.agent()
    [wait] = parked.value.waits
    assert (wait.kind, 9000 <= (wait.after_ms or 0) <= 9900) == ("rate_limit", True)
    assert (await peer.verdict())["attempts"] == 1


@pytest.mark.parametrize(
    ("behavior", "kind", "code", "attempts"),
    [
        (fail(401), Fatal, RunCode.FATAL, 1),
        (fail(404), Fatal, RunCode.FATAL, 1),
        (fail(429, code="insufficient_quota", times=None), Fatal, RunCode.FATAL, 1),
        (fail(400, code="content_filter"), ContentRefused, RunCode.CONTENT_REFUSED, 1),
        (fail(400, code="context_length_exceeded"), Fatal, RunCode.FATAL, 1),
        (fail(429, retry_after=0.1, times=None), ModelUnavailable, RunCode.RATE_LIMIT, 3),
        (fail(500, times=None), ModelUnavailable, RunCode.SERVER_ERROR, 3),
        (break_stream("disconnect", times=None), ModelUnavailable, RunCode.CONNECTION, 3),
    ],
)
async def test_what_does_not_pass_ends_the_run_with_its_code(
    peer: Peer, behavior: dict[str, Any], kind: type[RunFailed], code: RunCode, attempts: int
) -> None:
    await peer.plan(behavior)
    with pytest.raises(kind) as caught:
        await peer.agent()
    assert caught.value.code is code
    verdict = await peer.verdict()
    # It warns of whoever gives up, which is right here.
    assert (verdict["errors"], verdict["attempts"]) == (0, attempts)


async def test_many_runs_at_once_meet_every_fault(peer: Peer) -> None:
    await peer.plan(*(behavior for behaviors, _ in FAULTS.values() for behavior in behaviors))
    ended = await asyncio.gather(
        *(peer.agent(f"The weather at place {n}?", attempts=8) for n in range(20))
    )
    assert [answer.stopped for answer, _ in ended] == [None] * 20
    assert sum(len(retries(steps)) for _, steps in ended) >= len(FAULTS) - 3
    verdict = await peer.verdict()
    assert verdict["errors"] == 0
    assert verdict["faults_injected"] >= len(FAULTS) - 2


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")

    city: str
    people: int


async def test_an_answer_of_a_shape(peer: Peer) -> None:
    shape = OutputShape(name="Place", parameters=Place.model_json_schema())
    request = ModelRequest(model="gpt-mock", messages=(UserMessage(text="where?"),), shape=shape)
    completion = await peer.provider.complete(request, lambda _: None)
    Place.model_validate_json(completion.text)
    assert completion.tokens is not None
    [sent] = await peer.requests()
    assert sent["body"]["response_format"]["json_schema"]["strict"] is True


async def test_a_filtered_answer(peer: Peer) -> None:
    await peer.plan({"type": "reply", "text": "bad words", "finish_reason": "content_filter"})
    offers = (ToolOffer(name="look", description="Looks.", parameters={"type": "object"}),)
    request = ModelRequest(model="m", messages=(UserMessage(text="x"),), tools=offers)
    completion = await peer.provider.complete(request, lambda _: None)
    assert (completion.finish_reason, completion.text) == ("content_filter", "")
    assert completion.withheld == len("bad words")
