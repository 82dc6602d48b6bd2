"""A bench for agents: a scripted model, a test's own tools, a journal in memory, a clock."""

from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from posthouse.agents.loop import AgentLoop
from posthouse.agents.spec import Agent, AgentSpec
from posthouse.errors import ToolFailed
from posthouse.journal.model import AgentAnswer, Prompt
from posthouse.llm.messages import ToolOffer
from posthouse.llm.retry import RetryingProvider
from posthouse.llm.routed import one_model
from posthouse.telemetry import Metrics
from posthouse.testing.provider import Line, ScriptedProvider
from posthouse.testing.steps import Crash, MemorySteps
from posthouse.tools.model import (
    Effect,
    Page,
    Resources,
    SearchHit,
    Source,
    Tool,
    ToolAnswer,
    ToolContext,
)

Body = Callable[[ToolContext, str], Awaitable[ToolAnswer]]


class NoResources:
    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        raise ToolFailed("nothing here", kind="unexpected")

    async def read(self, address: str) -> Page:
        raise ToolFailed("nothing here", kind="unexpected")


class Bench:
    """Runs one agent; `calls` are the tool calls that were really made."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.calls: list[tuple[str, str]] = []
        self.tools: dict[str, Tool] = {}
        self.slept: list[float] = []
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.steps = MemorySteps(now=self.now)
        self.provider = ScriptedProvider()
        self.task = "Topic: posts"
        self.tool("look", self.look)

    def now(self) -> float:
        return self.time

    def tool(self, name: str, body: Body, effect: Effect = Effect.READ) -> None:
        async def call(context: ToolContext, arguments: str) -> ToolAnswer:
            self.calls.append((context.step, arguments))
            return await body(context, arguments)

        offer = ToolOffer(name=name, description="A tool.", parameters={"type": "object"})
        self.tools[name] = Tool(offer, effect, 30.0, 32768, call)

    async def look(self, context: ToolContext, arguments: str) -> ToolAnswer:
        source = Source(address=f"doc://{arguments}", title=arguments)
        return ToolAnswer(text=f"seen {arguments}", sources=(source,))

    def script(self, *lines: Line) -> None:
        self.provider = ScriptedProvider(lines)

    def crashing(self, crash: Crash) -> None:
        self.steps = MemorySteps(now=self.now, crash=crash)

    def reopen(self, crash: Crash | None = None) -> None:
        self.steps = self.steps.reopen(crash)

    def agent(self) -> Agent:
        spec = AgentSpec("scout", "Looks.", "scout.v1", tools=tuple(self.tools))
        return Agent(spec, Prompt("scout", 1, "You look."))

    async def run(
        self,
        *lines: Line,
        max_iterations: int | None = None,
        timeout_seconds: float = 120.0,
        agent: Agent | None = None,
        output: type[BaseModel] | None = None,
    ) -> AgentAnswer:
        if lines:
            self.script(*lines)
        none = NoResources()
        loop = AgentLoop(
            one_model(RetryingProvider(self.provider, sleep=self._sleep), "m"),
            self.tools,
            Resources(search=none, pages=none),
            self.metrics,
            timeout_seconds=timeout_seconds,
            now=self.now,
        )
        return await loop.run(
            self.steps,
            agent or self.agent(),
            key="scout",
            task=self.task,
            max_iterations=max_iterations,
            output=output,
        )

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


@pytest.fixture
def bench() -> Bench:
    return Bench()
