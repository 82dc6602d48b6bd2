"""`posthouse demo-orchestrate`: a goal, a plan that a person approves, subtasks on several workers, one answer."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import httpx

from posthouse import clock
from posthouse.cli.screen import Screen
from posthouse.cli.service import PATIENCE_SECONDS, Envelope, Plan, Service, ServiceFailed
from posthouse.cli.session import searched, with_stack
from posthouse.cli.words import count, seconds, shown
from posthouse.embedded.stack import Layout
from posthouse.events import types as t
from posthouse.runs.model import Status

DEFAULT_GOAL = "How does posthouse survive the death of a worker, and what does a crash cost?"
# So that the subtasks of a small plan are shared out, as those of many plans would be.
SLOTS = 1


async def orchestrate(
    layout: Layout, screen: Screen, goal: str, verbose: bool, warnings: Sequence[str] = ()
) -> int:
    """Runs one orchestrator on a stack of its own, approves its plan; 0 when the run completed."""

    async def work(start_seconds: float) -> int:
        screen.line(f"ready after {seconds(start_seconds)}", "dim")
        facts = [("API", layout.api_url), ("Redis", layout.redis), ("Model", layout.model)]
        screen.facts([*facts, searched(layout), ("Log", shown(layout.log))])
        timeout = httpx.Timeout(10, read=PATIENCE_SECONDS)
        async with httpx.AsyncClient(
            base_url=layout.api_url, timeout=timeout, trust_env=False
        ) as http:
            try:
                return await _Orchestration(Service(http), layout, screen, goal).run()
            except ServiceFailed as error:
                screen.quiet()
                screen.line(str(error), "bold red")
                return 1

    screen.title("posthouse demo-orchestrate", warnings)
    return await with_stack(layout, screen, work, verbose=verbose)


@dataclass
class _Orchestration:
    """One run, as it is followed."""

    service: Service
    layout: Layout
    screen: Screen
    goal: str
    events: int = 0
    names: dict[str, str] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)

    async def run(self) -> int:
        """Submits, follows, approves, shows; the exit code."""
        self.screen.line()
        self.screen.line(self.goal, "bold")
        began = clock.monotonic()
        request: dict[str, str | bool] = {"goal": self.goal, "approve_plan": True}
        run_id = await self.service.submit("orchestrator", request)
        self.screen.line(f"orchestrator, run {run_id}\n", "dim")
        async with aclosing(self.service.follow(run_id)) as stream:
            async for envelope in stream:
                await self._heard(run_id, envelope, clock.monotonic() - began)
        total = clock.monotonic() - began
        self.screen.quiet()
        self.screen.line()
        return await self._shown(run_id, total)

    async def _heard(self, run_id: str, envelope: Envelope, elapsed: float) -> None:
        self.events += envelope.seq is not None
        match envelope.event:
            case t.SubtaskStarted(subtask=subtask, worker=worker):
                self.names[envelope.run_id] = subtask
                self.workers[subtask] = worker
            case t.SubtaskCancelled(subtask=subtask) | t.SubtaskFailed(subtask=subtask):
                self.names[envelope.run_id] = subtask
            case _:
                pass
        self.screen.event(envelope, elapsed, self.names.get(envelope.run_id, ""))
        match envelope.event:
            case t.InputRequested(kind="plan", input_id=input_id):
                self._plan(await self.service.plan(run_id))
                await self.service.approve(input_id)
                self.screen.line("approved by this command\n", "bold")
            case _:
                pass

    def _plan(self, plan: Plan) -> None:
        self.screen.line()
        for node in plan.nodes:
            after = f" after {', '.join(node.depends_on)}" if node.depends_on else ""
            self.screen.line(f"{node.id} ({node.agent}){after}")

    async def _shown(self, run_id: str, total: float) -> int:
        outcome = await self.service.orchestration(run_id)
        if outcome.output is not None:
            self.screen.report(outcome.output.answer, "Answer")
            self.screen.sources(outcome.output.sources)
        if outcome.error is not None:
            self.screen.line(f"{outcome.error.message} ({outcome.error.code})", "bold red")
        await self._usage(run_id)
        for subtask, worker in self.workers.items():
            self.screen.line(f"{subtask} ran on worker {worker}")
        good = outcome.status is Status.COMPLETED
        facts = (
            f"{outcome.status} in {seconds(total)}",
            count(self.events, "event"),
            count(len(self.workers), "subtask"),
            f"on {count(len(set(self.workers.values())), 'worker')}",
        )
        self.screen.line(" · ".join(facts), "bold green" if good else "bold red")
        if self.layout.stand_in:
            self.screen.line(
                "The stand-in model planned and wrote this. It is not a language model: it quotes what\n"
                "its tools returned. Set OPENAI_API_KEY or OPENAI_BASE_URL to use a real one.",
                "yellow",
            )
        self.screen.line()
        return 0 if good else 1

    async def _usage(self, run_id: str) -> None:
        usage = await self.service.usage(run_id)
        heads = ("", "model calls", "tool calls", "tokens in", "tokens out", "USD")
        lines = [*((one.agent or "", one) for one in usage.by_agent), ("all", usage.total)]
        rows = [
            (
                *(name, f"{one.model_calls:,}", f"{one.tool_calls:,}"),
                *(f"{one.input_tokens:,}", f"{one.output_tokens:,}", one.money),
            )
            for name, one in lines
        ]
        self.screen.table("What it took", heads, rows)
