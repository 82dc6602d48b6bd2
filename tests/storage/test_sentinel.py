"""Sentinels name the master: real ones, through a failover; and what their URL may be."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from posthouse.embedded.valkey import find_server
from posthouse.errors import ConfigurationError, StorageUnavailable
from posthouse.events.hub import Hub
from posthouse.runs.model import Status
from posthouse.storage.connect import available, connect
from posthouse.storage.sentinel import is_sentinel
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow

PATIENCE = 30.0
LOOK_SECONDS = 0.05


@pytest.fixture(scope="module")
def program() -> str:
    """A server that can be a sentinel as well."""
    try:
        return shutil.which("redis-server") or find_server()
    except ConfigurationError:
        pytest.skip("no redis-server here that could be a sentinel")


@asynccontextmanager
async def running(*command: str, folder: Path, says: bytes) -> AsyncIterator[Any]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while says not in (line := await process.stdout.readline()):
                assert line, f"{command} did not start"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(met: Callable[[], Awaitable[bool]]) -> None:
    """Returns once it is so."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if await met():
                return
            await asyncio.sleep(LOOK_SECONDS)


@dataclass
class Cell:
    """A master, its replica, and a sentinel that watches them; `master` is the process."""

    url: str
    master: Any
    ports: tuple[int, int]
    sentinel: Redis

    def kill_master(self) -> None:
        self.master.kill()

    async def address(self) -> tuple[str, int]:
        host, port = await self.sentinel.sentinel_get_master_addr_by_name("cell")
        return host.decode(), int(port)


@pytest.fixture
async def cell(
    program: str, tmp_path: Path, free_tcp_port_factory: Callable[[], int]
) -> AsyncIterator[Cell]:
    first, second, watch = (free_tcp_port_factory() for _ in range(3))
    conf = tmp_path / "sentinel.conf"
    conf.write_text(
        f"port {watch}\nbind 127.0.0.1\nsentinel monitor cell 127.0.0.1 {first} 1\n"
        "sentinel down-after-milliseconds cell 400\nsentinel failover-timeout cell 3000\n"
    )
    common = ("--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0")
    ready = b"Ready to accept connections"
    async with AsyncExitStack() as stack:
        servers = []
        for port, more in ((first, ()), (second, ("--replicaof", f"127.0.0.1 {first}"))):
            folder = tmp_path / str(port)
            folder.mkdir()
            command = (program, "--port", str(port), *common, *more)
            servers.append(
                await stack.enter_async_context(running(*command, folder=folder, says=ready))
            )
        replica = await stack.enter_async_context(Redis(port=second))

        async def in_step() -> bool:
            return (await replica.info("replication")).get("master_link_status") == "up"

        await until(in_step)
        watching = running(program, str(conf), "--sentinel", folder=tmp_path, says=b"+slave")
        await stack.enter_async_context(watching)
        sentinel = await stack.enter_async_context(Redis(port=watch))
        nobody = free_tcp_port_factory()
        url = f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{watch}/cell"
        yield Cell(url, servers[0], (first, second), sentinel)


async def replicate(redis: Redis) -> None:
    """Returns when the replica has all that was written before."""
    async with redis.client() as connection:
        await connection.set("mark", "1")
        assert await connection.wait(1, 5000) == 1


async def serves(redis: Redis) -> bool:
    try:
        with available():
            await redis.set("back", "1")
    except StorageUnavailable:
        return False
    return True


async def test_after_a_failover_the_next_call_goes_to_the_new_master(cell: Cell) -> None:
    async with connect(cell.url, socket_timeout=1.0) as redis:
        await redis.set("key", "kept")
        await replicate(redis)
        waiting = asyncio.create_task(redis.blpop(["list"], timeout=0.1))
        assert await waiting is None
        cell.kill_master()
        with pytest.raises(StorageUnavailable), available():
            await redis.get("key")
        await until(lambda: serves(redis))
        assert await redis.get("key") == b"kept"
        assert await cell.address() == ("127.0.0.1", cell.ports[1])
        assert (await redis.info("server"))["tcp_port"] == cell.ports[1]


class Given(BaseModel):
    n: int = 0


async def two_steps(ctx: RunContext, given: Given) -> Given:
    async def work(n: int) -> int:
        return n + 1

    first = await ctx.step("one", work, given.n)
    return Given(n=await ctx.step("two", work, first))


async def test_a_fleet_and_its_readers_live_on_after_a_failover(cell: Cell) -> None:
    flow = Workflow("flow", 1, "", Given, Given, two_steps)
    async with (
        LocalFleet(cell.url, [flow]) as fleet,
        connect(cell.url) as pushed,
        Hub(pushed) as hub,
    ):
        fleet.worker()
        before = await fleet.submit("flow", '{"n":1}')
        assert (await fleet.ended(before)).status is Status.COMPLETED
        await replicate(fleet.redis)
        cell.kill_master()
        await until(lambda: serves(fleet.redis))
        after = await fleet.submit("flow", '{"n":2}')
        assert await hub.wait_terminal(after, PATIENCE)
        assert (await fleet.record(after)).output == {"n": 4}
        assert (await fleet.record(before)).output == {"n": 3}


async def test_sentinels_may_have_a_login_of_their_own(cell: Cell) -> None:
    for user in (("watcher", "on", ">p@ss/+%41", "+@all"), ("default", "resetpass")):
        await cell.sentinel.execute_command("ACL", "SETUSER", *user)
    login = f"sentinel_username=watcher&sentinel_password={quote('p@ss/+%41', safe='')}"
    async with connect(f"{cell.url}?{login}") as redis:
        assert await redis.ping()
    for wrong in ("", "?sentinel_password=other"):
        async with connect(f"{cell.url}{wrong}") as redis:
            with pytest.raises(StorageUnavailable, match="credentials in REDIS_URL"), available():
                await redis.ping()


async def test_a_service_that_no_sentinel_knows_is_unavailable(cell: Cell) -> None:
    async with connect(cell.url.replace("/cell", "/other")) as redis:
        with pytest.raises(StorageUnavailable) as raised, available():
            await redis.ping()
    assert "no sentinel knows a master of 'other'" in str(raised.value.__cause__)


async def test_no_sentinel_there_is_unavailable(free_tcp_port: int) -> None:
    async with connect(f"redis+sentinel://127.0.0.1:{free_tcp_port}/cell") as redis:
        with pytest.raises(StorageUnavailable, match="does not answer"), available():
            await redis.ping()


async def test_a_silent_sentinel_costs_nothing_while_another_answers(cell: Cell) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = cell.url.replace("//", f"//127.0.0.1:{port},")
    async with server, connect(url, connect_timeout=10.0) as redis:
        async with asyncio.timeout(2):
            assert await redis.ping()


def test_everything_in_the_url_is_heeded() -> None:
    url = "redis+sentinel://me:s%40cret@one:1,[::1],three/cell?db=2&socket_timeout=0.5"
    pool = connect(url, max_connections=7, connect_timeout=0.4).connection_pool
    assert (pool.service_name, pool.max_connections) == ("cell", 7)
    wanted = {"username": "me", "password": "s@cret", "db": 2, "socket_timeout": 0.5}
    assert wanted.items() <= pool.connection_kwargs.items()
    asked = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in asked] == [
        ("one", 1), ("::1", 26379), ("three", 26379)
    ]  # fmt: skip
    assert {one["password"] for one in asked} == {None}
    assert {(one["socket_timeout"], one["socket_connect_timeout"]) for one in asked} == {(0.4, 0.4)}
    assert pool.connection_class is SentinelManagedConnection


def test_with_tls_the_sentinels_are_asked_by_tls_too() -> None:
    pool = connect("rediss+sentinel://one/cell?ssl_ca_certs=ca.pem").connection_pool
    assert pool.connection_class is SentinelManagedSSLConnection
    asked = pool.sentinel_manager.sentinels[0].connection_pool.connection_kwargs
    assert pool.connection_kwargs["ssl_ca_certs"] == asked["ssl_ca_certs"] == "ca.pem"


@pytest.mark.parametrize(
    "rest", ["one", "one/", "/cell", "one/cell/2", "one:x/cell", "one,,two/cell", "one/cell?a=b"]
)
def test_a_url_that_cannot_be_followed_is_one_line_without_its_password(rest: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL: [^\n]+$") as refused:
        connect(f"redis+sentinel://me:secret@{rest}")
    assert "secret" not in str(refused.value)


def test_which_addresses_name_sentinels() -> None:
    assert is_sentinel("redis+sentinel://one/cell")
    assert is_sentinel("rediss+sentinel://one/cell")
    assert not is_sentinel("redis://one/0")
