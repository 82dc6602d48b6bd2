"""A Redis that sentinels watch over: each new connection asks them who the master is now."""

import asyncio
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.exceptions import AuthenticationError, RedisError

from posthouse.storage.ending import ended

PORT = 26379
_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}
_FORM = "redis+sentinel://[user:password@]host:26379,host:26379/<service>[?db=0]"


def is_sentinel(url: str) -> bool:
    """Whether the address names sentinels instead of a server."""
    return url.partition("://")[0].lower() in _SCHEMES


def master_pool(url: str, **options: Any) -> "MasterPool":
    """A pool of connections to the master of the service that the URL names. Raises ValueError for a bad URL.

    `options` are those of a blocking pool; the URL's own win. User and password are the servers'; the sentinels' are
    `sentinel_username` and `sentinel_password` in its query.
    """
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    service = unquote(parts.path.strip("/"))
    if not service or "/" in service or not hosts:
        raise ValueError(f"with sentinels it has to be {_FORM}")
    wanted: dict[str, Any] = dict(
        parse_url(f"{_SCHEMES[parts.scheme]}://{credentials}{at}master?{parts.query}")
    )
    del wanted["host"]
    tls = wanted.pop("connection_class", None) is SSLConnection
    asking = {name: value for name, value in options.items() if name.startswith("socket_")}
    # A sentinel answers at once or not at all.
    asking |= {"socket_timeout": options["socket_connect_timeout"], "ssl": tls}
    asking |= {name: value for name, value in wanted.items() if name.startswith("ssl_")}
    asking |= _sentinels_login(parts.query)
    for name in _LOGIN:
        wanted.pop(name, None)
    addresses = [_address(host) for host in hosts.split(",")]
    sentinels = Sentinels(addresses, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    options |= wanted
    options["connection_class"] = SentinelManagedSSLConnection if tls else SentinelManagedConnection
    return MasterPool(service, sentinels, **options)  # type: ignore[no-untyped-call]


def _sentinels_login(query: str) -> dict[str, str]:
    """Written as elsewhere in the URL: redis-py would take a + for a space, and what looks escaped twice."""
    pairs = (pair.partition("=") for pair in query.split("&"))
    return {_LOGIN[name]: unquote(value) for name, _, value in pairs if name in _LOGIN and value}


def _address(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname or parts.path:
        raise ValueError(
            f"there is a host that is none; it has to be {_FORM} (a / or # in a password is written %2F or %23)"
        )
    return parts.hostname, parts.port or PORT


class Sentinels(Sentinel):
    """Several sentinels, asked all at once, so that one that is silent costs nothing."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """The address that the first one says that knows it. Raises MasterNotFoundError, AuthenticationError."""
        asked = [asyncio.create_task(self._ask(one, service_name)) for one in self.sentinels]
        failure = refusal = None
        try:
            for answer in asyncio.as_completed(asked):
                match await answer:
                    case (host, port):
                        return host, port
                    case AuthenticationError() as error:
                        refusal = error
                    case Exception() as error:
                        failure = error
                    case _:
                        pass
        finally:
            await ended(asked)
        if refusal is not None:
            raise refusal
        message = f"no sentinel knows a master of {service_name!r} that is up"
        raise MasterNotFoundError(message) from failure

    async def _ask(self, sentinel: Redis, service: str) -> tuple[str, int] | Exception | None:
        try:
            masters = await sentinel.sentinel_masters()  # type: ignore[no-untyped-call]
        except (RedisError, OSError, RuntimeError) as error:
            return error
        state = masters.get(service)
        if state and self.check_master_state(state, service):
            return state["ip"], state["port"]
        return None


class MasterPool(SentinelConnectionPool, BlockingConnectionPool):
    """A bounded, blocking pool of connections to the master; after a failover the next ones go to its successor."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Ends the connections; with those in use, also the ones to the sentinels."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()
