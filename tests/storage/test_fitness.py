"""Which Redis is fit to hold runs, and what happens to whoever is started on another one."""

from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from posthouse.errors import ConfigurationError, StorageUnavailable
from posthouse.storage.connect import connect
from posthouse.storage.fitness import fitness, require_fit

EVICTS = "may throw runs away when it is full (maxmemory-policy allkeys-lru: set noeviction)"
FORGETS = "loses all runs when it ends (appendonly no, and no snapshots: set appendonly yes)"


async def set_options(url: str, **options: str) -> None:
    async with Redis.from_url(url) as redis:
        for name, value in options.items():
            await redis.config_set(name.replace("_", "-"), value)


async def add_user(url: str, name: str, *rights: str) -> str:
    """The address for a user with these rights."""
    async with Redis.from_url(url) as redis:
        await redis.execute_command("ACL", "SETUSER", name, "on", ">pw", "~*", *rights)
    return url.replace("://", f"://{name}:pw@")


async def test_a_redis_as_it_has_to_be(valkey: Any) -> None:
    async with connect(valkey.url) as redis:
        found = await fitness(redis)
    assert (found.faults, found.unasked) == ((), ())
    with capture_logs() as lines:
        await require_fit(valkey.url, unsafe=False)
    assert lines == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
async def test_one_that_evicts_is_refused(valkey: Any, policy: str) -> None:
    await set_options(valkey.url, maxmemory_policy=policy)
    with pytest.raises(ConfigurationError, match=rf"the Redis of REDIS_URL .*{policy}"):
        await require_fit(valkey.url, unsafe=False)


async def test_one_that_keeps_nothing_is_refused_and_snapshots_are_enough(valkey: Any) -> None:
    await set_options(valkey.url, appendonly="no")
    with pytest.raises(ConfigurationError) as refused:
        await require_fit(valkey.url, unsafe=False)
    assert str(refused.value) == (
        f"the Redis of REDIS_URL {FORGETS}; POSTHOUSE_UNSAFE_REDIS=1 takes it as it is"
    )
    await set_options(valkey.url, save="60 1")
    await require_fit(valkey.url, unsafe=False)


async def test_whoever_wants_it_gets_it_with_a_warning(valkey: Any) -> None:
    await set_options(valkey.url, appendonly="no", maxmemory_policy="allkeys-lru")
    with pytest.raises(ConfigurationError) as refused:
        await require_fit(valkey.url, unsafe=False)
    assert f"{EVICTS} and {FORGETS}; " in str(refused.value)
    with capture_logs() as lines:
        await require_fit(valkey.url, unsafe=True)
    assert lines == [
        {"event": "redis_unfit", "log_level": "warning", "fault": fault}
        for fault in (EVICTS, FORGETS)
    ]


async def test_one_that_may_not_be_asked_is_let_through_with_a_line(valkey: Any) -> None:
    await set_options(valkey.url, appendonly="no", maxmemory_policy="allkeys-lru")
    url = await add_user(valkey.url, "quiet", "+@all", "-info", "-config")
    with capture_logs() as lines:
        await require_fit(url, unsafe=False)
    assert lines == [
        {
            "event": "redis_not_asked",
            "log_level": "info",
            "about": ["maxmemory-policy", "persistence"],
        }
    ]


async def test_without_config_the_rest_is_asked(valkey: Any) -> None:
    """As on managed servers: what INFO tells is enough for all but the snapshots."""
    url = await add_user(valkey.url, "managed", "+@all", "-config")
    with capture_logs() as lines:
        await require_fit(url, unsafe=False)
        assert lines == []
        await set_options(valkey.url, appendonly="no")
        await require_fit(url, unsafe=False)
    assert [line["about"] for line in lines] == [["persistence"]]
    await set_options(valkey.url, maxmemory_policy="allkeys-lru")
    with pytest.raises(ConfigurationError):
        await require_fit(url, unsafe=False)


async def test_without_info_config_is_asked(valkey: Any) -> None:
    url = await add_user(valkey.url, "blind", "+@all", "-info")
    await set_options(valkey.url, appendonly="no", maxmemory_policy="allkeys-lru")
    async with connect(url) as redis:
        assert (await fitness(redis)).faults == (EVICTS, FORGETS)


async def test_one_that_is_away_is_for_those_who_wait(valkey: Any) -> None:
    valkey.kill()
    await require_fit(valkey.url, unsafe=False)
    async with connect(valkey.url) as redis:
        with pytest.raises(StorageUnavailable):
            await fitness(redis)
