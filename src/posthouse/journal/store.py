"""The journal in Redis: what is read at a claim, and the writes of steps under the fence."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
from redis.asyncio import Redis

from posthouse.errors import Fatal, OwnershipLost
from posthouse.events.types import Draft
from posthouse.journal.model import Outcome, Prompt, Usage, Wait
from posthouse.runs.ownership import Claimed
from posthouse.storage import keys
from posthouse.storage.connect import available
from posthouse.storage.scripts import Script, Scripts, rows

BLOB_LIMIT = 64 * 1024
INTENT = "intent:"


@dataclass(frozen=True)
class Loaded:
    """The journal as it stood: outcomes by step key, the epoch in which each open step was last started, and the
    steps whose effect was begun."""

    outcomes: dict[str, Outcome]
    starts: dict[str, int]
    intents: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Record:
    """A step that is to be committed. `outcome` is a JSON object without seq, epoch and time."""

    key: str
    outcome: bytes
    blob: bytes | None = None
    usage: Usage = field(default_factory=Usage)
    events: tuple[Draft, ...] = ()
    opens: tuple[str, ...] = ()


class JournalStore:
    """The journals of all runs, on one Redis client. Raises StorageUnavailable, and OwnershipLost on every refusal."""

    def __init__(self, redis: Redis, scripts: Scripts | None = None) -> None:
        self._redis = redis
        self._scripts = scripts or Scripts(redis)

    async def load(self, run_id: str) -> Loaded:
        """What the run has done so far; results above the limit are fetched from their blobs."""
        with available():
            pipe = self._redis.pipeline(transaction=False)
            pipe.hgetall(keys.journal(run_id))
            pipe.hgetall(keys.starts(run_id))
            journal, starts = await pipe.execute()
        outcomes = {
            key.decode(): Outcome.model_validate_json(text) for key, text in journal.items()
        }
        for key, outcome in outcomes.items():
            if outcome.blob is not None:
                outcomes[key] = await self._whole(run_id, outcome, outcome.blob)
        opened = {key.decode(): value for key, value in starts.items()}
        return Loaded(
            outcomes,
            {key: int(epoch) for key, epoch in opened.items() if not key.startswith(INTENT)},
            frozenset(key.removeprefix(INTENT) for key in opened if key.startswith(INTENT)),
        )

    async def _whole(self, run_id: str, outcome: Outcome, digest: str) -> Outcome:
        with available():
            text = await self._redis.get(keys.blob(run_id, digest))
        if text is None:
            raise Fatal("a stored result of this run is gone")
        return outcome.model_copy(update={"result": orjson.loads(text)})

    async def start(
        self,
        run: Claimed,
        told: int,
        *,
        steps: Sequence[str] = (),
        events: Sequence[Draft] = (),
        pins: Sequence[Prompt] = (),
        intents: Sequence[Draft] = (),
    ) -> tuple[int, list[Prompt]]:
        """Announces that steps begin, and pins prompts; answers with the seq and what the tree is pinned to.

        An intent is the event that will say of its step that the effect is in doubt; a commit of the step removes it.
        """
        verdict, seq, *pinned = await self._scripts.call(
            Script.START,
            *(run.run_id, run.fence, told),
            *rows([(pin.name, f"{pin.version}\n{pin.text}") for pin in pins]),
            *rows([draft.fields() for draft in events]),
            *rows([(key,) for key in steps]),
            *rows([(draft.step, draft.agent, draft.event.data_json()) for draft in intents]),
        )
        if verdict != b"started":
            raise OwnershipLost(run.run_id)
        return int(seq), [_prompt(pin.name, text) for pin, text in zip(pins, pinned, strict=True)]

    async def commit(self, run: Claimed, told: int, record: Record) -> int:
        """Records a step once, with its usage and events; answers with the seq."""
        digest = hashlib.sha256(record.blob).hexdigest() if record.blob else ""
        verdict, seq = await self._scripts.call(
            Script.COMMIT,
            *(
                run.run_id,
                run.fence,
                told,
                record.key,
                record.outcome[1:],
                digest,
                record.blob or b"",
            ),
            *rows(list(record.usage.spent().items())),
            *rows([draft.fields() for draft in record.events]),
            *rows([(key,) for key in record.opens]),
        )
        if verdict != b"committed":
            raise OwnershipLost(run.run_id)
        return int(seq)

    async def park(
        self,
        run: Claimed,
        told: int,
        *,
        status: str,
        reason: str,
        event: Draft,
        waits: Sequence[Wait],
    ) -> int | None:
        """Ends the ownership until a wait ends; None, or the new `signals` when one has ended meanwhile."""
        verdict, signals = await self._scripts.call(
            Script.PARK,
            *(run.run_id, run.fence, told, run.signals, status, reason, *event.fields()),
            *rows([_wait_row(wait) for wait in waits]),
        )
        if verdict == b"moved":
            return int(signals)
        if verdict != b"parked":
            raise OwnershipLost(run.run_id)
        return None


def outcome_json(record: Outcome) -> tuple[bytes, bytes | None]:
    """An outcome as the journal stores it, and its blob when the result is above the limit."""
    fields = record.model_dump(
        mode="json", exclude={"seq", "epoch", "time", "result"}, exclude_defaults=True
    )
    fields["duration_ms"] = record.duration_ms
    result = orjson.dumps(record.result)
    if len(result) > BLOB_LIMIT:
        fields["blob"] = hashlib.sha256(result).hexdigest()
        return orjson.dumps(fields), result
    return orjson.dumps({**fields, "result": orjson.Fragment(result)}), None


def _prompt(name: str, stored: bytes) -> Prompt:
    version, _, text = stored.decode().partition("\n")
    return Prompt(name, int(version), text)


def _wait_row(wait: Wait) -> tuple[str, str, str, str]:
    after = "" if wait.after_ms is None else str(wait.after_ms)
    return wait.key, wait.kind, after, wait.outcome.removeprefix("{")
