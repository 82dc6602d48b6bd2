"""A look at a Redis before anything starts: real servers, fit and unfit, and none at all."""

import asyncio
import re
from collections.abc import Iterator
from typing import Protocol

import pytest
from redis.asyncio import Redis

from posthouse.embedded.ports import free_ports
from posthouse.embedded.preflight import examine
from posthouse.errors import ConfigurationError

NAME = "redis://somewhere"


class Server(Protocol):
    """The fixture `valkey`, as far as these tests need it."""

    url: str

    def freeze(self) -> None: ...
    def thaw(self) -> None: ...


@pytest.fixture
def frozen(valkey: Server) -> Iterator[Server]:
    valkey.freeze()
    yield valkey
    valkey.thaw()


async def test_a_redis_as_it_has_to_be_is_not_talked_about(valkey: Server) -> None:
    assert await examine(valkey.url, NAME) == ()


async def test_one_that_evicts_or_keeps_nothing_is_refused_in_one_line(valkey: Server) -> None:
    async with Redis.from_url(valkey.url) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        await redis.config_set("appendonly", "no")
    with pytest.raises(ConfigurationError) as refused:
        await examine(valkey.url, NAME)
    assert re.fullmatch(
        r"the Redis of REDIS_URL may throw runs away .* and loses all runs [^\n]*"
        r"; POSTHOUSE_UNSAFE_REDIS=1 takes it as it is",
        str(refused.value),
    )


async def test_when_it_is_wanted_its_faults_are_named_a_line_each(valkey: Server) -> None:
    async with Redis.from_url(valkey.url) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        (policy,) = await examine(valkey.url, NAME, unsafe=True)
        await redis.config_set("appendonly", "no")
        assert await examine(valkey.url, NAME, unsafe=True) == (
            policy,
            f"Redis at {NAME} loses all runs when it ends (appendonly no, and no snapshots: "
            "set appendonly yes)",
        )
        await redis.config_set("save", "60 1")
        assert await examine(valkey.url, NAME, unsafe=True) == (policy,)
    assert policy == (
        f"Redis at {NAME} may throw runs away when it is full (maxmemory-policy allkeys-lru: "
        "set noeviction)"
    )


async def test_what_may_not_be_asked_is_passed_over_in_silence(valkey: Server) -> None:
    async with Redis.from_url(valkey.url) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        for user, rights in (("quiet", ["+@all", "-info", "-config"]), ("mute", ["-@all"])):
            await redis.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", *rights)
    place = valkey.url.removeprefix("redis://")
    assert await examine(f"redis://quiet:pw@{place}", NAME) == ()
    assert await examine(f"redis://mute:pw@{place}", NAME) == ()
    with pytest.raises(ConfigurationError, match="refuses the credentials in REDIS_URL"):
        await examine(f"redis://quiet:wrong@{place}", NAME)


async def test_one_that_is_not_there_says_why() -> None:
    said = re.escape(f"Redis at {NAME} does not answer (connection refused)")
    with pytest.raises(ConfigurationError, match=said):
        await examine(f"redis://127.0.0.1:{free_ports(1)[0]}", NAME)


async def test_sentinels_that_are_not_there_say_why() -> None:
    said = re.escape(f"Redis at {NAME} does not answer (connection refused)")
    with pytest.raises(ConfigurationError, match=said):
        await examine(f"redis+sentinel://:secret@127.0.0.1:{free_ports(1)[0]}/cell", NAME)


async def test_one_that_is_silent_costs_a_moment(frozen: Server) -> None:
    with pytest.raises(ConfigurationError, match=r"does not answer \(nothing came within 2 s\)"):
        await examine(frozen.url, NAME)


async def test_something_else_that_listens_there_is_no_redis() -> None:
    async def chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(chat, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigurationError, match=r"does not answer \(Protocol error"):
            await examine(f"redis://127.0.0.1:{port}", NAME)


async def test_one_that_loads_its_data_is_waited_for() -> None:
    async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(loading, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        said = await examine(f"redis://127.0.0.1:{port}", NAME)
    assert said == (f"Redis at {NAME} is still loading its data",)
