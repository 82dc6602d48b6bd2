"""Breakers of models' endpoints, kept in Redis: what one worker finds out, all know."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit

from redis.asyncio import Redis

from posthouse.errors import ConfigurationError
from posthouse.storage.scripts import Script, Scripts

_PORTS = {"http": 80, "https": 443}


class Gate(StrEnum):
    """Whether a try may be made: closed, all may; probe, this one may, to find out; open, none may."""

    CLOSED = "closed"
    PROBE = "probe"
    OPEN = "open"


class Sign(StrEnum):
    """What a try says of its endpoint; a dropped one says nothing."""

    ALIVE = "alive"
    FAILED = "failed"
    DROPPED = "dropped"


@dataclass(frozen=True)
class BreakerPolicy:
    """When a breaker opens, and for how long. Times in seconds.

    It opens at `failures` in a row, the first of them at least `span` ago. It stays open for `first`, and twice as long
    each time that the probe fails, up to `longest`. A probe has `probe` to report; the others look again after `look`.
    """

    failures: int = 3
    span: float = 1.0
    first: float = 5.0
    longest: float = 60.0
    probe: float = 30.0
    look: float = 2.0


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked: its name in Redis, and its host and port for people."""

    digest: str
    host: str

    @classmethod
    def at(cls, base_url: str) -> Self:
        """The endpoint of a base URL; spelling, credentials and query make no difference.

        Raises ConfigurationError when it is no URL.
        """
        try:
            parts = urlsplit(base_url)
            port = parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            raise ConfigurationError("the address of the model is no URL") from None
        host = f"{parts.hostname or ''}:{port}"
        normal = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        return cls(hashlib.sha256(normal.encode()).hexdigest()[:16], host)


@dataclass(frozen=True)
class Admission:
    """The answer to a try that wants to be made; `wait_seconds` until it is worth asking again."""

    gate: Gate
    wait_seconds: float


@dataclass(frozen=True)
class Standing:
    """The breaker after a report; `turned` when this very report opened or closed it."""

    open: bool
    turned: bool
    wait_seconds: float


class Breaker:
    """The breakers of all endpoints, on one Redis client. Raises StorageUnavailable.

    A call may be repeated with its token and is then answered as the first time.
    """

    def __init__(
        self, redis: Redis, policy: BreakerPolicy | None = None, *, scripts: Scripts | None = None
    ) -> None:
        self._scripts = scripts or Scripts(redis)
        self._policy = policy or BreakerPolicy()

    async def admit(self, endpoint: Endpoint, token: str) -> Admission:
        """Whether the try of this token may be made now."""
        policy = self._policy
        gate, wait = await self._scripts.call(
            Script.ADMIT, endpoint.digest, token, _ms(policy.probe), _ms(policy.look)
        )
        return Admission(Gate(gate.decode()), wait / 1000)

    async def report(
        self, endpoint: Endpoint, token: str, sign: Sign, *, probe: bool = True
    ) -> Standing:
        """Takes in how the try of this token ended; once the breaker was open, only failed probes open it again."""
        policy = self._policy
        gate, turned, wait = await self._scripts.call(
            Script.REPORT,
            *(endpoint.digest, token, sign, int(probe), policy.failures, _ms(policy.span)),
            *(_ms(policy.first), _ms(policy.longest), _ms(policy.look)),
        )
        return Standing(gate == b"open", bool(turned), wait / 1000)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
