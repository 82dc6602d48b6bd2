"""The `posthouse` command: options and settings in, an exit code out."""

import asyncio
import sys
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from posthouse.cli.configuration import given_names, load_settings, unknown
from posthouse.cli.demo import DEFAULT_TOPIC
from posthouse.cli.demo import demo as run_demo
from posthouse.cli.doctor import doctor as run_doctor
from posthouse.cli.libraries import check_libraries
from posthouse.cli.orchestrate import DEFAULT_GOAL, SLOTS
from posthouse.cli.orchestrate import orchestrate as run_orchestrate
from posthouse.cli.screen import standard_output
from posthouse.cli.up import up as run_up
from posthouse.embedded.preflight import examine
from posthouse.embedded.stack import Layout, lay_out
from posthouse.errors import ConfigurationError

WRONG_USE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="posthouse",
    help="Agent workflows that survive what happens to their workers.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Depth(StrEnum):
    """How thoroughly to research."""

    STANDARD = "standard"
    DEEP = "deep"


Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show the logs of all processes too."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            print("posthouse", version("posthouse"))
        except PackageNotFoundError:
            print("posthouse, not installed: run from its source")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def posthouse(
    context: typer.Context,
    _: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Shows what there is when no command is given."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def up(verbose: Verbose = False) -> None:
    """Start Valkey, a model, the API and workers on this machine, and keep them running."""
    layout, warnings = _prepare()
    raise typer.Exit(asyncio.run(run_up(layout, standard_output(), verbose, warnings)))


@app.command()
def demo(
    topic: Annotated[str, typer.Option(help="What to research.")] = DEFAULT_TOPIC,
    depth: Annotated[Depth, typer.Option(help="How thoroughly.")] = Depth.DEEP,
    verbose: Verbose = False,
) -> None:
    """Start everything, research one topic in the documents of this project, print it, stop."""
    layout, warnings = _prepare(any_port=True)
    work = run_demo(layout, standard_output(), topic, depth, verbose, warnings)
    raise typer.Exit(asyncio.run(work))


@app.command()
def demo_orchestrate(
    goal: Annotated[str, typer.Option(help="What to find out.")] = DEFAULT_GOAL,
    verbose: Verbose = False,
) -> None:
    """Start everything, let several agents work on one goal by a plan that is approved, print it, stop."""
    layout, warnings = _prepare(any_port=True, slots=SLOTS)
    work = run_orchestrate(layout, standard_output(), goal, verbose, warnings)
    raise typer.Exit(asyncio.run(work))


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is found.")] = False,
) -> None:
    """Look in the Redis of REDIS_URL for what outlived its run or got lost."""
    raise typer.Exit(asyncio.run(run_doctor(load_settings(), fix=fix)))


def _prepare(*, any_port: bool = False, slots: int | None = None) -> tuple[Layout, list[str]]:
    """What is to run, and what a person should know of before. Raises ConfigurationError."""
    settings = load_settings()
    check_libraries(settings.libraries)
    layout = lay_out(settings, any_port=any_port, slots=slots)
    warnings = unknown(given_names())
    if layout.own_redis is not None:
        warnings += asyncio.run(
            examine(layout.own_redis, layout.redis, unsafe=settings.unsafe_redis)
        )
    return layout, warnings


def main() -> None:
    """Runs the command; wrong use is one line on standard error and exit code 2."""
    try:
        code = app(prog_name="posthouse", standalone_mode=False)
    except typer.TyperException as error:
        code = _refuse(error.format_message(), error.exit_code)
    except typer.Abort:
        code = INTERRUPTED
    except ConfigurationError as error:
        code = _refuse(str(error), WRONG_USE)
    sys.exit(code)


def _refuse(message: str, code: int) -> int:
    print(f"posthouse: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
