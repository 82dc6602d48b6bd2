"""The steps of a run as a caller sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from posthouse.journal.model import Outcome
from posthouse.storage import keys
from posthouse.storage.connect import available


@dataclass(frozen=True)
class StepDone:
    """A journalled step: its key and what came of it."""

    key: str
    outcome: Outcome

    @property
    def position(self) -> str:
        """Where it stands among the steps of its run; sorts as text."""
        return f"{self.outcome.seq:015d}:{self.outcome.ordinal:06d}:{self.key}"


class Journal:
    """The journals of all runs, on one Redis client. Everything raises StorageUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def steps(self, run_id: str) -> tuple[StepDone, ...]:
        """Every step in the order of commits; results that lie in blobs are left out."""
        [steps] = await self.several([run_id])
        return steps

    async def several(self, run_ids: Sequence[str]) -> list[tuple[StepDone, ...]]:
        """The steps of each of the runs, in one round trip."""
        with available():
            pipe = self._redis.pipeline(transaction=False)
            for run_id in run_ids:
                pipe.hgetall(keys.journal(run_id))
            journals = await pipe.execute()
        return [_steps_of(stored) for stored in journals]

    async def results(self, run_id: str, steps: Sequence[StepDone]) -> list[Any]:
        """What each of the steps returned, blobs included."""
        digests = [step.outcome.blob for step in steps if step.outcome.blob is not None]
        blobs: dict[str, Any] = {}
        if digests:
            with available():
                texts = await self._redis.mget([keys.blob(run_id, digest) for digest in digests])
            for digest, text in zip(digests, texts, strict=True):
                blobs[digest] = None if text is None else orjson.loads(text)
        return [
            step.outcome.result if step.outcome.blob is None else blobs[step.outcome.blob]
            for step in steps
        ]


def _steps_of(stored: dict[bytes, bytes]) -> tuple[StepDone, ...]:
    steps = [
        StepDone(key.decode(), Outcome.model_validate_json(text)) for key, text in stored.items()
    ]
    return tuple(sorted(steps, key=lambda step: step.position))
