"""`posthouse up`: the service on this machine, until it is told to stop."""

import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from posthouse.cli.demo import DEFAULT_TOPIC
from posthouse.cli.screen import Screen
from posthouse.cli.session import searched, with_stack
from posthouse.cli.words import seconds, shown
from posthouse.embedded.stack import Layout


async def up(layout: Layout, screen: Screen, verbose: bool, warnings: Sequence[str] = ()) -> int:
    """Runs the service until SIGINT or SIGTERM; both are its proper end."""

    async def work(start_seconds: float) -> int:
        screen.line(f"up after {seconds(start_seconds)}\n", "bold green")
        _where(layout, screen)
        _what_now(layout, screen)
        await asyncio.Event().wait()
        return 0

    screen.title("posthouse", warnings)
    return await with_stack(layout, screen, work, verbose=verbose, interrupted=0)


def _where(layout: Layout, screen: Screen) -> None:
    url = layout.api_url
    names, values = ["Metrics"] + [""] * len(layout.metrics_urls[1:]), layout.metrics_urls
    screen.facts(
        [
            ("API", f"{url}/api/v1"),
            ("Docs", f"{url}/docs"),
            *zip(names, values, strict=True),
            ("Redis", layout.redis),
            ("Model", layout.model),
            searched(layout),
            *([] if layout.own_redis else [("Data", shown(layout.data_dir))]),
            ("Log", shown(layout.log)),
        ]
    )


def _what_now(layout: Layout, screen: Screen) -> None:
    runs = f"{layout.api_url}/api/v1/runs"
    request = {"workflow": "research", "input": {"topic": DEFAULT_TOPIC, "depth": "deep"}}
    screen.line("\nStart a run, and watch it with the run_id of the answer:\n")
    screen.line(f"  curl -X POST {runs} -d {shlex.quote(json.dumps(request))}", "cyan")
    screen.line(f"  curl -N {runs}/RUN_ID/stream", "cyan")
    secrets = ", ".join(layout.joining.secrets)
    also = f", with the {secrets} that this one has" if secrets else ""
    screen.line(f"\nAdd a worker, in another terminal{also}:\n")
    screen.line(f"  {layout.joining.line(shown(Path(sys.executable)))}\n", "cyan")
    stays = "" if layout.own_redis else "; the data stays"
    screen.line(f"Ctrl-C stops everything{stays}.", "dim")
