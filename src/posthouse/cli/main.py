"""The `posthouse` command: options and settings in, an exit code out."""

import asyncio
import sys
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import ValidationError

from posthouse.cli.demo import DEFAULT_TOPIC
from posthouse.cli.demo import demo as run_demo
from posthouse.cli.screen import standard_output
from posthouse.cli.up import up as run_up
from posthouse.embedded.stack import lay_out
from posthouse.errors import ConfigurationError
from posthouse.settings import Settings

WRONG_USE = 2

app = typer.Typer(
    name="posthouse",
    help="Agent workflows that survive what happens to their workers.",
    no_args_is_help=True,
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


@app.command()
def up(verbose: Verbose = False) -> None:
    """Start Valkey, a model, the API and workers on this machine, and keep them running."""
    layout = lay_out(load_settings())
    raise typer.Exit(asyncio.run(run_up(layout, standard_output(), verbose)))


@app.command()
def demo(
    topic: Annotated[str, typer.Option(help="What to research.")] = DEFAULT_TOPIC,
    depth: Annotated[Depth, typer.Option(help="How thoroughly.")] = Depth.DEEP,
    verbose: Verbose = False,
) -> None:
    """Start everything, research one topic in the documents of this project, print it, stop."""
    layout = lay_out(load_settings(), any_port=True)
    work = run_demo(layout, standard_output(), topic, depth, verbose)
    raise typer.Exit(asyncio.run(work))


def load_settings() -> Settings:
    """The settings of the environment and `.env`. Raises ConfigurationError with one line."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigurationError("; ".join(wrong)) from None


def main() -> None:
    """Runs the command; wrong use is one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        code = _refuse(error.format_message(), error.exit_code)
    except ConfigurationError as error:
        code = _refuse(str(error), WRONG_USE)
    sys.exit(code)


def _refuse(message: str, code: int) -> int:
    print(f"posthouse: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
