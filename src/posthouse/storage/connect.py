"""The way to Redis: bounded, blocking pools, and one name for everything that means it is away."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from posthouse.errors import ConfigurationError, StorageUnavailable
from posthouse.storage.sentinel import is_sentinel, master_pool

# What Redis answers when it is there and cannot serve; redis-py gives most of them no class of their own.
_PASSING = (
    "BUSY",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "UNBLOCKED",
    "UNKILLABLE",
)


def connect(
    url: str,
    *,
    max_connections: int = 32,
    socket_timeout: float | None = 5.0,
    connect_timeout: float = 1.0,
) -> Redis:
    """A client with a pool of its own that waits for a free connection; timeouts in seconds, replies in bytes.

    `redis+sentinel://host,host/<service>` leads to the master that sentinels name. It never repeats a call by
    itself: who calls knows whether that is safe. Raises ConfigurationError for a bad URL.
    """
    try:
        pool = _pool(
            url,
            max_connections=max_connections,
            timeout=socket_timeout or connect_timeout,
            socket_timeout=socket_timeout,
            socket_connect_timeout=connect_timeout,
            retry=Retry(NoBackoff(), 0),
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # what the URL asks for may not exist
    except (ValueError, TypeError, RedisError) as error:
        raise ConfigurationError(f"REDIS_URL: {_wrong(error)}") from None
    return Redis.from_pool(pool)


def _pool(url: str, **options: Any) -> ConnectionPool:
    if not url.startswith("unix:"):
        options["socket_keepalive"] = True
    if is_sentinel(url):
        return master_pool(url, **options)
    return BlockingConnectionPool.from_url(url, **options)


def _wrong(error: Exception) -> str:
    """The client's words, but no piece of a password that was taken for a port."""
    if str(error).startswith("Port"):
        return "its port is no number (a / or # in a password is written %2F or %23)"
    if "unexpected keyword argument" in str(error):
        return f"there is no option {str(error).rpartition(' ')[2]}"
    return str(error)


@contextmanager
def available() -> Iterator[None]:
    """Turns every way in which Redis can be away, loading, full or read-only into StorageUnavailable."""
    try:
        yield
    except (RedisError, RuntimeError, OSError) as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        raise StorageUnavailable(meaning) from error


def _meaning(error: Exception) -> str | None:
    match error:
        case AuthenticationError() | NoPermissionError():
            return "Redis refuses what the credentials in REDIS_URL ask for"
        case OutOfMemoryError():
            return "Redis is full"
        case ReadOnlyError():
            return "Redis is read-only"
        case ConnectionError() | TimeoutError() | InvalidResponse() | OSError():
            return "Redis does not answer"
        case ResponseError() if "OOM" in str(error):
            return "Redis is full"
        case ResponseError() if str(error).startswith(_PASSING):
            return "Redis cannot serve now"
        case RuntimeError() if "closed" in str(error):
            # uvloop, when the connection is found closed only as something is written to it.
            return "Redis does not answer"
        case _:
            return None
