"""The journal in Redis: what is read at a claim, and the writes of steps under the fence."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from posthouse.budget.model import (
    WARN_PERCENT,
    Busy,
    Granted,
    OnExceeded,
    Refused,
    Reservation,
    Verdict,
)
from posthouse.errors import Fatal, LimitReached, OwnershipLost, RunCode
from posthouse.events.types import Draft, InputRequested, head
from posthouse.inputs.model import Answer, Decision, OnTimeout, Question, Request, input_id
from posthouse.journal.model import Outcome, Prompt, StepError, Usage, Wait
from posthouse.runs.model import SCHEMA_VERSION
from posthouse.runs.ownership import Claimed
from posthouse.storage import keys
from posthouse.storage.connect import available
from posthouse.storage.scripts import Script, Scripts, rows

BLOB_LIMIT = 64 * 1024
INTENT = "intent:"
MOST_DESCENDANTS = 1000
DEEPEST = 5


@dataclass(frozen=True)
class Loaded:
    """The journal as it stood: outcomes by step key, the epoch in which each open step was last started, and the
    steps whose effect was begun."""

    outcomes: dict[str, Outcome]
    starts: dict[str, int]
    intents: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Record:
    """A step that is to be committed. `outcome` is a JSON object without seq, epoch and time.

    `former` is the seq of the outcome that it takes the place of, "" for none.
    """

    key: str
    outcome: bytes
    blob: bytes | None = None
    usage: Usage = field(default_factory=Usage)
    events: tuple[Draft, ...] = ()
    opens: tuple[str, ...] = ()
    former: str = ""


@dataclass(frozen=True)
class Told:
    """Where the run's log stands, and how many of its events are copies of its children's."""

    seq: int
    copied: int


@dataclass(frozen=True)
class Spawn:
    """A child that is to be made: the step that makes it, the one that is its end, what it is of. `input` is JSON."""

    key: str
    end_key: str
    child: str
    outcome: bytes
    subtask: str
    workflow: str
    version: int
    input: str
    created: Draft
    former: str = ""


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
    ) -> tuple[Told, list[Prompt]]:
        """Announces that steps begin, and pins prompts; answers with what the tree is pinned to.

        An intent is the event that will say of its step that the effect is in doubt; a commit of the step removes it.
        """
        verdict, seq, copied, *pinned = await self._scripts.call(
            Script.START,
            *(run.run_id, run.fence, told),
            *rows([(pin.name, f"{pin.version}\n{pin.text}") for pin in pins]),
            *rows([draft.fields() for draft in events]),
            *rows([(key,) for key in steps]),
            *rows([(draft.step, draft.agent, draft.event.data_json()) for draft in intents]),
        )
        if verdict != b"started":
            raise OwnershipLost(run.run_id)
        texts = [_prompt(pin.name, text) for pin, text in zip(pins, pinned, strict=True)]
        return Told(int(seq), int(copied)), texts

    async def commit(self, run: Claimed, told: int, record: Record) -> Told:
        """Records a step once, with its usage and events."""
        digest = hashlib.sha256(record.blob).hexdigest() if record.blob else ""
        verdict, seq, copied = await self._scripts.call(
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
            record.former,
        )
        if verdict != b"committed":
            raise OwnershipLost(run.run_id)
        return Told(int(seq), int(copied))

    async def spawn(self, run: Claimed, told: int, spawn: Spawn) -> Told:
        """Makes a child run, once for the step. Raises LimitReached: the tree is too large or too deep."""
        verdict, seq, copied = await self._scripts.call(
            Script.SPAWN,
            *(run.run_id, run.fence, told, spawn.key, spawn.child, spawn.outcome[1:]),
            *(spawn.end_key, spawn.subtask, spawn.workflow, spawn.version, SCHEMA_VERSION),
            *(spawn.input, *spawn.created.fields(), MOST_DESCENDANTS, DEEPEST, spawn.former),
        )
        if verdict == b"full":
            raise LimitReached(f"a run may have {MOST_DESCENDANTS} runs below it, {DEEPEST} deep")
        if verdict != b"spawned":
            raise OwnershipLost(run.run_id)
        return Told(int(seq), int(copied))

    async def ask(self, run: Claimed, told: int, question: Question, former: str) -> Told:
        """Opens an input request, once for the step; whoever answers it ends the step."""
        expires = question.expires_seconds
        request = question.request
        asked = InputRequested(
            input_id=input_id(run.run_id, question.key),
            kind=request.kind,
            question=head(request.question),
            tool=request.tool or None,
        )
        verdict, seq, copied = await self._scripts.call(
            Script.ASK,
            *(run.run_id, run.fence, told, question.key),
            "" if expires is None else round(expires * 1000),
            "" if expires is None else expired_outcome(request).removeprefix("{"),
            request.model_dump_json(),
            *Draft(event=asked, agent=request.agent, step=question.key).fields(),
            former,
        )
        if verdict != b"asked":
            raise OwnershipLost(run.run_id)
        return Told(int(seq), int(copied))

    async def reserve(
        self, run: Claimed, told: int, wanted: Reservation
    ) -> tuple[int, Verdict | Busy]:
        """The seq, and whether the budget allows the call; granted, it is reserved until the step's commit."""
        priced = wanted.input_nano_usd is not None and wanted.thousand_output_nano_usd is not None
        verdict, seq, *rest = await self._scripts.call(
            Script.RESERVE,
            *(run.run_id, run.fence, told, wanted.step),
            *(wanted.input_tokens, wanted.most, wanted.least),
            wanted.input_nano_usd if priced and wanted.input_nano_usd is not None else "",
            wanted.thousand_output_nano_usd
            if priced and wanted.thousand_output_nano_usd is not None
            else "",
            *(wanted.model_calls, wanted.tool_calls),
            *(wanted.wasted_tokens, wanted.wasted_nano_usd, WARN_PERCENT),
        )
        match verdict:
            case b"granted":
                return int(seq), Granted(int(rest[0]), int(rest[1]))
            case b"busy":
                return int(seq), Busy()
            case b"refused":
                what, percent, action = rest
                return int(seq), Refused(what.decode(), int(percent), OnExceeded(action.decode()))
            case _:
                raise OwnershipLost(run.run_id)

    async def extend(self, run: Claimed, told: int, step: str, grown: Mapping[str, int]) -> None:
        """Raises limits of the tree's budget, once for the step."""
        [verdict] = await self._scripts.call(
            Script.EXTEND, run.run_id, run.fence, told, step, *rows(list(grown.items()))
        )
        if verdict != b"extended":
            raise OwnershipLost(run.run_id)

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


def expired_outcome(request: Request) -> str:
    """What the journal holds of a question that nobody answered in time."""
    fields: dict[str, Any] = {"digest": request.digest, "agent": request.agent}
    match request.on_timeout:
        case OnTimeout.FAIL:
            failure = StepError(code=RunCode.INPUT_EXPIRED, message="Nobody answered in time.")
            return orjson.dumps({**fields, "error": failure.model_dump()}).decode()
        case OnTimeout.DEFAULT:
            answer = Answer(decision=Decision.RESPOND, value=request.default, timed_out=True)
        case _:
            answer = Answer(decision=Decision.REJECT, timed_out=True)
    return orjson.dumps({**fields, "result": answer.model_dump(mode="json")}).decode()


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
