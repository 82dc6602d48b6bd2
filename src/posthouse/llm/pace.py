"""How fast models' endpoints are asked, kept in Redis: one count and one closed door for the whole fleet."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from redis.asyncio import Redis

from posthouse.llm.limits import Allowance, Told
from posthouse.storage.scripts import Script, Scripts


class Outcome(StrEnum):
    """What a request says of the limit: answered, refused for its rate, or nothing."""

    ALIVE = "alive"
    LIMITED = "limited"
    NONE = "none"


@dataclass(frozen=True)
class PacePolicy:
    """Waits in seconds.

    A refusal that names no time closes for `first`, and twice as long each time, up to `longest`. After one, one
    request in each `trial` finds out, and the others look again after `look`. Nobody is told to wait longer than
    `longest`.
    """

    first: float = 2.0
    longest: float = 60.0
    trial: float = 1.0
    look: float = 3.0


@dataclass(frozen=True)
class Limits:
    """The operator's limits of an endpoint, over all its models; 0 is none."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self.requests_per_minute > 0 or self.tokens_per_minute > 0


@dataclass(frozen=True)
class Lane:
    """One model at one endpoint: its names in Redis, and the limits of the endpoint."""

    whole: str
    model: str
    limits: Limits = Limits()

    @property
    def digest(self) -> str:
        """The model's own name."""
        return hashlib.sha256(f"{self.whole} {self.model}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Permit:
    """The answer to a request that wants to be made.

    `wait_seconds` is 0 when it may be made now, counted with so many `tokens` in a slot of the minute (0: not counted).
    `refused` says that the endpoint refused one before and has answered none since.
    """

    wait_seconds: float = 0.0
    slot: int = 0
    tokens: int = 0
    refused: bool = False


@dataclass(frozen=True)
class Closure:
    """How long nobody may ask, 0 for not at all; `turned` when this very report closed it."""

    wait_seconds: float
    turned: bool


@dataclass(frozen=True)
class Report:
    """What became of a request: how many more requests and tokens it was than counted, what its answer said."""

    outcome: Outcome
    requests: int = 0
    tokens: int = 0
    retry_after: float | None = None
    told: Told | None = None


class Pace:
    """The rates of all endpoints, on one Redis client. Raises StorageUnavailable."""

    def __init__(
        self, redis: Redis, policy: PacePolicy | None = None, *, scripts: Scripts | None = None
    ) -> None:
        self._scripts = scripts or Scripts(redis)
        self._policy = policy or PacePolicy()

    async def take(self, lane: Lane, tokens: int) -> Permit:
        """Whether a request of about so many tokens may be made now; if so, it is counted."""
        policy, limits = self._policy, lane.limits
        answer, wait, slot, refused = await self._scripts.call(
            Script.PACE,
            *("take", lane.whole, lane.digest),
            *(limits.requests_per_minute, limits.tokens_per_minute, max(1, tokens)),
            *(_ms(policy.trial), _ms(policy.look), _ms(policy.longest)),
        )
        if answer == b"limited":
            return Permit(max(wait, 1) / 1000, refused=bool(refused))
        counted = answer == b"counted"
        return Permit(0.0, slot if counted else 0, max(1, tokens), bool(refused))

    async def tell(self, lane: Lane, permit: Permit, report: Report) -> Closure:
        """Takes in what became of a request."""
        policy, told = self._policy, report.told or Told()
        asked = -1 if report.retry_after is None else _ms(report.retry_after)
        gate, wait, turned = await self._scripts.call(
            Script.PACE,
            *("tell", lane.whole, lane.digest, int(lane.limits.any), permit.slot),
            *(report.requests, report.tokens, report.outcome, asked),
            *(_ms(policy.first), _ms(policy.longest)),
            *(*_pair(told.requests), *_pair(told.tokens)),
        )
        return Closure(wait / 1000 if gate == b"closed" else 0.0, bool(turned))


def _pair(allowance: Allowance) -> tuple[int, int]:
    return allowance.limit, allowance.left


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
