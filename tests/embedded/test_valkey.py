"""The embedded Valkey: found, started, killed and back with its data."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from posthouse.embedded.logfile import LogFile
from posthouse.embedded.ports import free_ports
from posthouse.embedded.probes import answers_ping
from posthouse.embedded.supervisor import Supervisor
from posthouse.embedded.valkey import EmbeddedValkey, find_server

LIMIT_SECONDS = 20.0


@pytest.fixture
def valkey(tmp_path: Path) -> EmbeddedValkey:
    return EmbeddedValkey(find_server(), tmp_path / "a folder", free_ports(1)[0])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogFile]:
    with LogFile(tmp_path / "log") as log:
        yield log


async def test_it_is_there_for_this_machine_only_and_keeps_every_write(
    valkey: EmbeddedValkey, log: LogFile
) -> None:
    async with Supervisor([valkey.process()], log, print), Redis.from_url(valkey.url) as redis:
        wanted = {
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            "dir": str(valkey.folder),
        }
        assert await redis.config_get(*wanted) == wanted
        await redis.set("letter", "on its way")
    async with Supervisor([valkey.process()], log, print), Redis.from_url(valkey.url) as redis:
        assert await redis.get("letter") == b"on its way"


async def test_after_kill_9_it_comes_back_on_its_port_with_its_data(
    valkey: EmbeddedValkey, log: LogFile
) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    async with Supervisor([valkey.process()], log, said.put_nowait) as supervisor:
        async with Redis.from_url(valkey.url) as redis:
            for number in range(500):
                await redis.rpush("road", number)
            # With everysec a write may wait up to two seconds for a slow disk.
            await redis.execute_command("WAITAOF", 1, 0, 10_000)
        pid = supervisor.pid("valkey")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(LIMIT_SECONDS):
            assert await said.get() == "valkey was killed by SIGKILL; starting it again in 0.2 s"
            assert (await said.get()).startswith("valkey is back after ")
        async with Redis.from_url(valkey.url) as redis:
            assert await redis.llen("road") == 500


async def test_a_server_that_loads_its_data_is_not_ready() -> None:
    async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"-LOADING the dataset in memory\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(loading, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert not await answers_ping("127.0.0.1", port)()
    assert not await answers_ping("127.0.0.1", port)()
