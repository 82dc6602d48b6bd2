"""`python -m posthouse.embedded.standin`: the stand-in model as a process."""

import argparse
import asyncio
import logging
import math
import signal
import sys
from typing import NoReturn

from uvicorn.config import Config

from posthouse.embedded.standin.app import create_app
from posthouse.embedded.standin.serve import StandinServer, listen, url_of


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, its URL on stdout once it is ready; gives the exit code."""
    chosen = _parsed(arguments)
    # What the script breaks on purpose is no news, and a stand-in has nothing else to log.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    loop_factory = Config("", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_serve(chosen))


async def _serve(chosen: argparse.Namespace) -> int:
    try:
        listening = listen(chosen.host, chosen.port)
    except OSError as error:
        reason = error.strerror or error
        sys.stderr.write(f"standin: cannot listen on {chosen.host}:{chosen.port}: {reason}\n")
        return 1
    server = StandinServer(create_app(chosen.latency_ms, chosen.token_ms), listening)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    url = url_of(listening)
    serving = asyncio.create_task(server.run_until_stopped())
    await server.ready.wait()
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    await serving
    return 0


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="standin",
        description="An OpenAI-compatible server that is no language model.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=_port, default=9100, help="0 takes a free one (%(default)s)")
    parser.add_argument(
        "--latency-ms", type=_milliseconds, default=0.0, help="until the first piece"
    )
    parser.add_argument("--token-ms", type=_milliseconds, default=0.0, help="between pieces")
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 3_600_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of milliseconds up to an hour")
    return value


if __name__ == "__main__":
    sys.exit(main())
