"""The life of a stack under a command: it starts, is worked with, and stops."""

import asyncio
from collections.abc import Awaitable, Callable

from posthouse import clock
from posthouse.cli.screen import Screen
from posthouse.cli.words import shown
from posthouse.embedded.interrupts import Interrupts
from posthouse.embedded.process import StartFailed
from posthouse.embedded.stack import Layout, opened
from posthouse.embedded.supervisor import Supervisor

Work = Callable[[float], Awaitable[int]]


async def with_stack(
    layout: Layout, screen: Screen, work: Work, *, verbose: bool, interrupted: int | None = None
) -> int:
    """Does the work while the stack runs, and gives its exit code.

    `work` is told how many seconds the start took. A signal ends it with the exit code
    `interrupted`, or with 128 and the signal's number.
    """
    echo = screen.log if verbose else None
    with opened(layout, screen.say, echo) as supervisor:
        interrupts = Interrupts(supervisor.kill)
        try:
            with interrupts.listening():
                code = await _live(layout, screen, work, supervisor)
        except StartFailed as error:
            _explain(error, layout, screen)
            return 1
        except asyncio.CancelledError:
            if interrupts.received is None:
                raise
            code = 128 + interrupts.received if interrupted is None else interrupted
    screen.line(f"stopped; {_what_stays(layout)}", "dim")
    return code


def searched(layout: Layout) -> tuple[str, str]:
    """What agents search, as a fact for the screen."""
    return ("Search", layout.search) if layout.search else ("Corpus", shown(layout.corpus))


def _what_stays(layout: Layout) -> str:
    if layout.own_redis:
        return f"the log stays in {shown(layout.log)}"
    return f"the data stays in {shown(layout.data_dir)}"


async def _live(layout: Layout, screen: Screen, work: Work, supervisor: Supervisor) -> int:
    began = clock.monotonic()
    screen.starting(layout)
    async with supervisor:
        try:
            return await work(clock.monotonic() - began)
        finally:
            screen.quiet()
            screen.line("stopping", "dim")


def _explain(error: StartFailed, layout: Layout, screen: Screen) -> None:
    for line in error.lines:
        screen.line(f"| {line}", "dim")
    screen.line(f"{error}; the whole log is in {shown(layout.log)}", "bold red")
