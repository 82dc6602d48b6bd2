"""Everything that the harness starts: Valkey, the proxies, the API, the workers, the recording servers."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from redis.asyncio import Redis
from redis.exceptions import RedisError

from posthouse.embedded.ports import free_ports
from posthouse.embedded.valkey import find_server
from tests.chaos.nursery import Nursery, Worker
from tests.chaos.proxy import Proxy
from tests.chaos.recorders import ModelServer, ToolServer
from tests.chaos.wire import serve

ROOT = Path(__file__).parents[2]
LIBRARY = "tests.chaos.library"
START_SECONDS = 30.0
# The child dies with whoever started it: 1 is PR_SET_PDEATHSIG.
_BOUND = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True)
class Plan:
    """How the stack is set up. Times in seconds."""

    workers: int = 3
    slots: int = 10
    lease: float = 1.5
    drain: float = 5.0
    databases: int = 1
    api: bool = True


@dataclass
class Ports:
    """Where everything listens."""

    valkey: int
    for_workers: int
    for_api: int
    api: int
    tools: int
    model: int


class Server:
    """A process with a log that is started again on the same port after it was killed."""

    def __init__(self, argv: list[str], log: Path, env: Mapping[str, str]) -> None:
        self._argv = argv
        self._log = log
        self._env = env
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when the process runs, not when it is ready."""
        bound = [sys.executable, "-SEc", _BOUND] if sys.platform == "linux" else []
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *bound,
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._env),
            )

    def send(self, how: signal.Signals) -> None:
        """A signal."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(how)

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.send(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()


@dataclass
class Stack:
    """The running service and what it talks to; the harness reads Redis past the proxies."""

    plan: Plan
    ports: Ports
    folder: Path
    redis: Redis
    valkey: Server
    api: Server
    nursery: Nursery
    tools: ToolServer
    model: ModelServer
    for_workers: Proxy
    for_api: Proxy
    workers: list[Worker] = field(default_factory=list)
    retired: list[Worker] = field(default_factory=list)
    apis: list[Server] = field(default_factory=list)

    @property
    def api_url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self.ports.api}"

    async def add_worker(self, *, database: int = 0, **env: str) -> Worker:
        """One more worker; with a skewed clock it is a process of its own from the start."""
        url = f"redis://127.0.0.1:{self.ports.for_workers}/{database}"
        worker = await self.nursery.start(REDIS_URL=url, **env)
        self.workers.append(worker)
        return worker

    async def add_api(self, database: int) -> str:
        """One more API, on another database; returns its address when it is ready."""
        [port] = free_ports(1)
        api = _api(self.plan, self.ports, self.folder, port, database)
        self.apis.append(api)
        await api.start()
        url = f"http://127.0.0.1:{port}"
        await self.api_ready(url)
        return url

    def retire(self, worker: Worker) -> None:
        """Takes it out of the list of those that can be hurt."""
        if worker in self.workers:
            self.workers.remove(worker)
            self.retired.append(worker)

    async def valkey_ready(self) -> float:
        """Seconds until Valkey answered and had loaded its data."""
        began = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(1):
                    await self.redis.ping()
                return time.monotonic() - began
            except (RedisError, OSError, TimeoutError):
                if time.monotonic() - began > START_SECONDS:
                    raise
                await asyncio.sleep(0.02)

    async def api_ready(self, url: str = "") -> None:
        """Returns when the API, or another one, says that it is ready."""
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(START_SECONDS):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"{url or self.api_url}/health/ready")).status_code == 200:
                        return
                await asyncio.sleep(0.05)


def environment(plan: Plan, ports: Ports, folder: Path) -> dict[str, str]:
    """What every process of the service gets; nothing of whoever runs the harness."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("POSTHOUSE_", "OPENAI_"))}
    path = [str(ROOT), str(ROOT / "src"), *filter(None, sys.path)]
    return kept | {
        "PYTHONPATH": os.pathsep.join(path),
        "POSTHOUSE_LIBRARIES": LIBRARY,
        "POSTHOUSE_LEASE_SECONDS": str(plan.lease),
        "POSTHOUSE_DRAIN_SECONDS": str(plan.drain),
        "POSTHOUSE_WORKER_SLOTS": str(plan.slots),
        "POSTHOUSE_CORPUS": str(folder / "corpus"),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{ports.model}/v1",
        "OPENAI_API_KEY": "none",
        "CHAOS_TOOLS_URL": f"http://127.0.0.1:{ports.tools}/",
    }


def _api(plan: Plan, ports: Ports, folder: Path, port: int, database: int) -> Server:
    env = environment(plan, ports, folder) | {
        "POSTHOUSE_PORT": str(port),
        "REDIS_URL": f"redis://127.0.0.1:{ports.for_api}/{database}",
    }
    return Server([sys.executable, "-m", "api_app"], folder / f"api-{database}.log", env)


def _valkey_argv(plan: Plan, ports: Ports, folder: Path) -> list[str]:
    options = {
        "port": ports.valkey,
        "bind": "127.0.0.1",
        "dir": folder,
        "databases": plan.databases,
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    return [find_server(), *(str(word) for key in options for word in (f"--{key}", options[key]))]


@asynccontextmanager
async def open_stack(folder: Path, plan: Plan) -> AsyncIterator[Stack]:
    """The whole stack, ready; everything is gone when the block ends."""
    ports = Ports(*free_ports(6))
    env = environment(plan, ports, folder)
    (folder / "valkey").mkdir(parents=True)
    (folder / "corpus").mkdir()
    (folder / "corpus" / "leases.md").write_text("# Leases\n\nA lease is limited ownership.\n")
    valkey = Server(_valkey_argv(plan, ports, folder / "valkey"), folder / "valkey.log", env)
    api = _api(plan, ports, folder, ports.api, 0)
    apis = [api]
    redis = Redis(host="127.0.0.1", port=ports.valkey, socket_timeout=5)
    tools, model = ToolServer(), ModelServer()
    proxies = Proxy(ports.valkey), Proxy(ports.valkey)
    served = [await serve(tools.handle, ports.tools), await serve(model.handle, ports.model)]
    await proxies[0].start(ports.for_workers)
    await proxies[1].start(ports.for_api)
    await valkey.start()
    try:
        async with Nursery(folder, env) as nursery:
            stack = Stack(plan, ports, folder, redis, valkey, api, nursery, tools, model, *proxies)
            stack.apis = apis
            await stack.valkey_ready()
            if plan.api:
                await api.start()
            for _ in range(plan.workers):
                await stack.add_worker()
            if plan.api:
                await stack.api_ready()
            yield stack
    finally:
        for one in apis:
            await one.kill()
        await valkey.kill()
        for proxy in proxies:
            await proxy.close()
        for server in served:
            server.close()
        await redis.aclose()
