"""A look at the Redis that was set, before anything starts: whether it answers, and is fit."""

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator

from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from posthouse.errors import ConfigurationError, StorageUnavailable
from posthouse.storage.connect import available, connect
from posthouse.storage.ending import ended

PATIENCE_SECONDS = 2.0


async def examine(url: str, name: str) -> tuple[str, ...]:
    """What is amiss with a Redis that answers, a line each; `name` is its address without secrets.

    Raises ConfigurationError when it does not answer. What it may not be asked is not amiss.
    """
    look = asyncio.create_task(_look(url, name))
    try:
        await asyncio.wait([look])
    finally:
        await ended([look])
    return look.result()


async def _look(url: str, name: str) -> tuple[str, ...]:
    redis = connect(
        url,
        max_connections=1,
        socket_timeout=PATIENCE_SECONDS,
        connect_timeout=PATIENCE_SECONDS,
    )
    async with redis:
        try:
            await _greet(redis)
        except StorageUnavailable as error:
            if isinstance(error.__cause__, BusyLoadingError):
                return (f"Redis at {name} is still loading its data",)
            if isinstance(error.__cause__, AuthenticationError):
                message = f"Redis at {name} refuses the credentials in REDIS_URL"
            else:
                message = f"Redis at {name} does not answer ({_reason(error)})"
            raise ConfigurationError(message) from None
        except ResponseError as error:
            raise ConfigurationError(f"Redis at {name} refuses: {error}") from None
        return tuple(f"Redis at {name} {fault}" for fault in await _faults(redis))


async def _greet(redis: Redis) -> None:
    with available():
        try:
            await redis.ping()
        except NoPermissionError:
            return  # it answers; what it allows is seen soon enough


async def _faults(redis: Redis) -> list[str]:
    faults = []
    policy = await _option(redis, "maxmemory-policy")
    if policy not in (None, "noeviction"):
        faults.append(
            f"may throw runs away when it is full (maxmemory-policy {policy}); "
            "set maxmemory-policy noeviction"
        )
    if await _writes_log(redis) is False and await _option(redis, "save") == "":
        faults.append(
            "keeps nothing on disk (appendonly no, and no snapshots): when it ends, "
            "all runs are lost; set appendonly yes"
        )
    return faults


async def _option(redis: Redis, option: str) -> str | None:
    """None when it may not be asked."""
    try:
        found: dict[str, str] = await redis.config_get(option)
    except RedisError:
        return None
    return found.get(option)


async def _writes_log(redis: Redis) -> bool | None:
    try:
        enabled = (await redis.info("persistence")).get("aof_enabled")
    except RedisError:
        return None
    return None if enabled is None else bool(enabled)


def _reason(error: BaseException) -> str:
    """The first cause that the system gave, in its words; else what the client says."""
    causes = list(_causes(error))
    for cause in causes:
        match cause:
            case TimeoutError():
                return f"nothing came within {PATIENCE_SECONDS:g} s"
            case socket.gaierror() | ssl.SSLError():
                return (cause.strerror or str(cause)).lower()
            case OSError(errno=int(number)):
                return os.strerror(number).lower()
            case _:
                continue
    return str(causes[0] if causes else error).rstrip(".")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
