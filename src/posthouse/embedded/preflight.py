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
    ResponseError,
)

from posthouse.errors import ConfigurationError, StorageUnavailable
from posthouse.storage.connect import available, connect
from posthouse.storage.ending import ended
from posthouse.storage.fitness import LOOK_SECONDS, fitness


async def examine(url: str, name: str, *, unsafe: bool = False) -> tuple[str, ...]:
    """What a person should know of a Redis that answers, a line each; `name` is its address without secrets.

    Raises ConfigurationError when it does not answer, or may lose runs and that is not wanted (`unsafe`).
    What it may not be asked is not amiss.
    """
    look = asyncio.create_task(_look(url, name, unsafe))
    try:
        await asyncio.wait([look])
    finally:
        await ended([look])
    return look.result()


async def _look(url: str, name: str, unsafe: bool) -> tuple[str, ...]:
    redis = connect(
        url, max_connections=1, socket_timeout=LOOK_SECONDS, connect_timeout=LOOK_SECONDS
    )
    async with redis:
        try:
            await _greet(redis)
            found = await fitness(redis)
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
    if found.faults and not unsafe:
        raise ConfigurationError(found.refusal)
    return tuple(f"Redis at {name} {fault}" for fault in found.faults)


async def _greet(redis: Redis) -> None:
    with available():
        try:
            await redis.ping()
        except NoPermissionError:
            return  # it answers; what it allows is seen soon enough


def _reason(error: BaseException) -> str:
    """The first cause that the system gave, in its words; else what the client says."""
    causes = list(_causes(error))
    for cause in causes:
        match cause:
            case TimeoutError():
                return f"nothing came within {LOOK_SECONDS:g} s"
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
