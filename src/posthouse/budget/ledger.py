"""Budgets as they stand in Redis."""

from collections.abc import Mapping

from redis.asyncio import Redis

from posthouse.budget.model import SUMS, BudgetState, OnExceeded
from posthouse.storage import keys
from posthouse.storage.connect import available

_TIMES = ("started_at", "retried_at", "asked_ms", "asking", "asked_since", "ended_at")


class Ledger:
    """The budgets of all runs, on one Redis client. Everything raises StorageUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def of(self, root: str) -> BudgetState | None:
        """The budget of a root and all below it; None when it has no limit."""
        with available():
            pipe = self._redis.pipeline(transaction=False)
            pipe.hgetall(keys.budget(root))
            pipe.hmget(keys.run(root), ["status", *_TIMES])
            pipe.time()
            stored, (status, *times), (seconds, micros) = await pipe.execute()
        if not stored:
            return None
        plain = {name.decode(): value.decode() for name, value in stored.items()}
        spent = _amounts(plain, "spent_")
        moments = {name: int(value or 0) for name, value in zip(_TIMES, times, strict=True)}
        worked = _worked(moments, seconds * 1000 + micros // 1000)
        return BudgetState(
            limits={
                name.removeprefix("limit_"): int(value)
                for name, value in plain.items()
                if name.startswith("limit_")
            },
            spent={**spent, "ms": 0 if status == b"pending" else worked},
            reserved=_amounts(plain, "reserved_"),
            lost=_amounts(plain, "lost_"),
            on_exceeded=OnExceeded(plain.get("on_exceeded", "incomplete")),
        )


def _amounts(stored: Mapping[str, str], prefix: str) -> dict[str, int]:
    return {name: int(stored.get(f"{prefix}{name}", 0)) for name in SUMS}


def _worked(moments: Mapping[str, int], now: int) -> int:
    """Milliseconds that a tree has worked since its start or its last retry, without the time that people took."""
    began = max(moments["started_at"], moments["retried_at"])
    if not began:
        return 0
    till = moments["ended_at"] or now
    asked = till - moments["asked_since"] if moments["asking"] else 0
    return max(0, till - began - moments["asked_ms"] - asked)
