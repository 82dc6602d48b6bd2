"""Whether a Redis is fit to hold runs: it throws nothing away, and keeps on disk what it has."""

from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from posthouse.errors import ConfigurationError, StorageUnavailable
from posthouse.storage.connect import available, connect

LOOK_SECONDS = 2.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Fitness:
    """What is amiss with a Redis, said after its name; and what it may not be asked."""

    faults: tuple[str, ...]
    unasked: tuple[str, ...]

    @property
    def refusal(self) -> str:
        """The line with which a process refuses to start on it."""
        faults = " and ".join(self.faults)
        return f"the Redis of REDIS_URL {faults}; POSTHOUSE_UNSAFE_REDIS=1 takes it as it is"


async def fitness(redis: Redis) -> Fitness:
    """Looks at eviction and persistence. Raises StorageUnavailable."""
    with available():
        policy = await _policy(redis)
        kept = await _kept_on_disk(redis)
    faults = []
    if policy not in (None, "noeviction"):
        faults.append(
            f"may throw runs away when it is full (maxmemory-policy {policy}: set noeviction)"
        )
    if kept is False:
        faults.append(
            "loses all runs when it ends (appendonly no, and no snapshots: set appendonly yes)"
        )
    asked = {"maxmemory-policy": policy, "persistence": kept}
    return Fitness(tuple(faults), tuple(name for name, found in asked.items() if found is None))


async def require_fit(url: str, *, unsafe: bool) -> None:
    """Raises ConfigurationError for a Redis that may lose runs; with `unsafe` the log says so instead.

    One that may not be asked passes, with a line in the log; so does one that is away, as whoever starts waits for it.
    """
    patience = {"socket_timeout": LOOK_SECONDS, "connect_timeout": LOOK_SECONDS}
    async with connect(url, max_connections=1, **patience) as redis:
        try:
            found = await fitness(redis)
        except StorageUnavailable:
            return
    if found.unasked:
        _log.info("redis_not_asked", about=list(found.unasked))
    if found.faults and not unsafe:
        raise ConfigurationError(found.refusal)
    for fault in found.faults:
        _log.warning("redis_unfit", fault=fault)


async def _policy(redis: Redis) -> str | None:
    told: str | None = (await _info(redis, "memory")).get("maxmemory_policy")
    return told or await _option(redis, "maxmemory-policy")


async def _kept_on_disk(redis: Redis) -> bool | None:
    """None when it may not be asked."""
    enabled = (await _info(redis, "persistence")).get("aof_enabled")
    if enabled is None:
        written = await _option(redis, "appendonly")
        enabled = None if written is None else written == "yes"
    if enabled:
        return True
    points = await _option(redis, "save")
    if points:
        return True
    return None if enabled is None or points is None else False


async def _info(redis: Redis, section: str) -> dict[str, Any]:
    """Nothing when it may not be asked; managed servers that forbid CONFIG still answer this."""
    try:
        found: dict[str, Any] = await redis.info(section)
    except ResponseError:
        return {}
    return found


async def _option(redis: Redis, option: str) -> str | None:
    """None when it may not be asked."""
    try:
        found: dict[str, str] = await redis.config_get(option)
    except ResponseError:
        return None
    return found.get(option)
