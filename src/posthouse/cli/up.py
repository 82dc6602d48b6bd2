"""`posthouse up`: the service on this machine, until it is told to stop."""

import asyncio
import json

from posthouse.cli.demo import DEFAULT_TOPIC
from posthouse.cli.screen import Screen
from posthouse.cli.session import with_stack
from posthouse.cli.words import seconds, shown
from posthouse.embedded.stack import Layout


async def up(layout: Layout, screen: Screen, verbose: bool) -> int:
    """Runs the service until SIGINT or SIGTERM; both are its proper end."""

    async def work(start_seconds: float) -> int:
        screen.line(f"up after {seconds(start_seconds)}\n", "bold green")
        _where(layout, screen)
        await asyncio.Event().wait()
        return 0

    screen.line("posthouse", "bold")
    return await with_stack(layout, screen, work, verbose=verbose, interrupted=0)


def _where(layout: Layout, screen: Screen) -> None:
    url = layout.api_url
    body = json.dumps({"topic": DEFAULT_TOPIC, "depth": "deep"})
    names, values = ["Metrics"] + [""] * len(layout.metrics_urls[1:]), layout.metrics_urls
    screen.facts(
        [
            ("API", f"{url}/api/v1"),
            ("Docs", f"{url}/docs"),
            *zip(names, values, strict=True),
            ("Redis", layout.redis),
            ("Model", layout.model),
            ("Corpus", shown(layout.corpus)),
            ("Data", shown(layout.data_dir)),
            ("Log", shown(layout.log)),
        ]
    )
    screen.line("\nStart a run, and watch it with the workflow_id of the answer:\n")
    screen.line(f"  curl -X POST {url}/api/v1/workflows/research -d '{body}'", "cyan")
    screen.line(f"  curl -N {url}/api/v1/workflows/WORKFLOW_ID/stream\n", "cyan")
    screen.line("Ctrl-C stops everything; the data stays.", "dim")
