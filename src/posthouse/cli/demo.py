"""`posthouse demo`: the whole road once, from the request to the report."""

from collections.abc import Sequence
from contextlib import aclosing

import httpx

from posthouse import clock
from posthouse.cli.screen import Screen
from posthouse.cli.service import PATIENCE_SECONDS, Outcome, Service, ServiceFailed
from posthouse.cli.session import searched, with_stack
from posthouse.cli.words import count, seconds, shown
from posthouse.embedded.stack import Layout
from posthouse.runs.model import Status

DEFAULT_TOPIC = "How does posthouse survive the death of a worker?"


async def demo(
    layout: Layout,
    screen: Screen,
    topic: str,
    depth: str,
    verbose: bool,
    warnings: Sequence[str] = (),
) -> int:
    """Runs one research run on a stack of its own; 0 when the run completed."""

    async def work(start_seconds: float) -> int:
        screen.line(f"ready after {seconds(start_seconds)}", "dim")
        screen.facts(
            [
                ("API", layout.api_url),
                ("Redis", layout.redis),
                ("Model", layout.model),
                searched(layout),
                ("Log", shown(layout.log)),
            ]
        )
        timeout = httpx.Timeout(10, read=PATIENCE_SECONDS)
        async with httpx.AsyncClient(
            base_url=layout.api_url, timeout=timeout, trust_env=False
        ) as http:
            try:
                return await _research(Service(http), layout, screen, topic, depth)
            except ServiceFailed as error:
                screen.quiet()
                screen.line(str(error), "bold red")
                return 1

    screen.title("posthouse demo", warnings)
    return await with_stack(layout, screen, work, verbose=verbose)


async def _research(
    service: Service, layout: Layout, screen: Screen, topic: str, depth: str
) -> int:
    screen.line()
    screen.line(topic, "bold")
    submitted = clock.monotonic()
    run_id = await service.submit("research", {"topic": topic, "depth": depth})
    screen.line(f"research, {depth}, run {run_id}\n", "dim")
    events, first = 0, 0.0
    async with aclosing(service.follow(run_id)) as stream:
        async for envelope in stream:
            elapsed = clock.monotonic() - submitted
            screen.event(envelope, elapsed)
            if envelope.seq is not None:
                first = first or elapsed
                events += 1
    total = clock.monotonic() - submitted
    screen.quiet()
    screen.line()
    outcome = await service.outcome(run_id)
    _show(outcome, screen)
    _sum_up(outcome, screen, events, first, total)
    if layout.stand_in and outcome.output is not None:
        screen.line(
            "The stand-in model wrote this. It is not a language model: it quotes what its tools\n"
            "returned. Set OPENAI_API_KEY or OPENAI_BASE_URL to use a real one.",
            "yellow",
        )
    screen.line()
    return 0 if outcome.status is Status.COMPLETED else 1


def _show(outcome: Outcome, screen: Screen) -> None:
    if outcome.output is not None:
        screen.report(outcome.output.report)
        screen.sources(outcome.output.sources)
    if outcome.error is not None:
        screen.line(f"{outcome.error.message} ({outcome.error.code})", "bold red")


def _sum_up(outcome: Outcome, screen: Screen, events: int, first: float, total: float) -> None:
    usage = outcome.usage
    facts = (
        f"{outcome.status} in {seconds(total)}",
        count(events, "event"),
        f"the first after {seconds(first)}",
        count(usage.model_calls, "model call"),
        count(usage.tool_calls, "tool call"),
    )
    good = outcome.status is Status.COMPLETED
    screen.line(" · ".join(facts), "bold green" if good else "bold red")
