"""Input requests as they are kept: read, listed, answered."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import orjson
from redis.asyncio import Redis

from posthouse.errors import Conflict, Gone, NotFound, StorageUnavailable
from posthouse.events.types import Draft, InputAnswered
from posthouse.inputs.model import Answer, Kind, Request
from posthouse.storage import keys
from posthouse.storage.connect import available
from posthouse.storage.scripts import Script, Scripts

_ID = re.compile(r"(?P<run>[0-9A-Z]{26})-(?P<part>[0-9a-f]{16})")
PAGE = 1000
READ_AT_ONCE = 100
LOOK_AT_MOST = 2_000
DEEPEST = 8
CHANGED = "what is asked has changed; look at it again"
NEWER = "the run was written by a newer posthouse than this one"


class State(StrEnum):
    """Where an input request is; `closed` when its run ended before it was answered."""

    OPEN = "open"
    ANSWERED = "answered"
    EXPIRED = "expired"
    CLOSED = "closed"


@dataclass(frozen=True)
class InputRequest:
    """A question of a run, as it stands. Times in milliseconds; `expires_at` is 0 for never.

    `seen` is a hash of what is asked: an answer counts for nothing else.
    """

    input_id: str
    run_id: str
    root: str
    step: str
    state: State
    created_at: int
    expires_at: int
    request: Request
    seen: str
    answer: Answer | None = None
    answered_at: int | None = None


@dataclass(frozen=True)
class Sought:
    """Which open questions a list shall have; `cursor` is that of the list before."""

    kind: Kind | None = None
    limit: int = 20
    cursor: str | None = None


@dataclass(frozen=True)
class Page:
    """A list of questions; `cursor` is where the next ones begin."""

    inputs: tuple[InputRequest, ...]
    cursor: str | None


class Inputs:
    """The questions of all runs, on one Redis client. Everything raises StorageUnavailable."""

    def __init__(self, redis: Redis, scripts: Scripts | None = None) -> None:
        self._redis = redis
        self._scripts = scripts or Scripts(redis)

    async def get(self, input_id: str, tenant: str) -> InputRequest:
        """The question. Raises NotFound, also for another tenant's."""
        found = next(iter(await self.several([input_id], tenant)), None)
        if found is None:
            raise NotFound(f"there is no input request {input_id[:64]}")
        return found

    async def inbox(self, tenant: str) -> list[InputRequest]:
        """Every open question, the oldest run's first; at most 1,000."""
        with available():
            ids = await self._redis.zrange(keys.inbox(tenant), 0, PAGE - 1)
        return await self.several([one.decode() for one in ids], tenant)

    async def open_in(self, root: str, tenant: str) -> list[InputRequest]:
        """The open questions of a run and of all below it."""
        with available():
            ids = await self._redis.smembers(keys.open_inputs(root))  # type: ignore[misc]
        return await self.several(sorted(one.decode() for one in ids), tenant)

    async def page(self, tenant: str, sought: Sought) -> Page:
        """Open questions, the oldest run's first.

        It may be shorter than its limit, and have a cursor, when few match.
        """
        found: list[InputRequest] = []
        cursor = sought.cursor
        for _ in range(0, LOOK_AT_MOST, READ_AT_ONCE):
            oldest = "-" if cursor is None else f"({cursor}"
            with available():
                ids = await self._redis.zrangebylex(
                    keys.inbox(tenant), oldest, "+", 0, READ_AT_ONCE
                )
            for asked in await self.several([one.decode() for one in ids], tenant):
                cursor = asked.input_id
                if asked.state is State.OPEN and sought.kind in (None, asked.request.kind):
                    found.append(asked)
                if len(found) == sought.limit:
                    return Page(tuple(found), cursor)
            if len(ids) < READ_AT_ONCE:
                return Page(tuple(found), None)
            cursor = ids[-1].decode()
        return Page(tuple(found), cursor)

    async def open_ids(self, run_id: str, root: str) -> list[str]:
        """The ids of the open questions of a run and of all below it, which is the whole tree for a root."""
        with available():
            members = await self._redis.smembers(keys.open_inputs(root))  # type: ignore[misc]
        ids = sorted(member.decode() for member in members)
        if run_id == root or not ids:
            return ids
        below = await self._below(run_id, {one.partition("-")[0] for one in ids})
        return [one for one in ids if one.partition("-")[0] in below]

    async def _below(self, run_id: str, run_ids: set[str]) -> set[str]:
        """Those of the runs that are this one or stand below it."""
        above = {one: one for one in run_ids}
        for _ in range(DEEPEST):
            climbing = [one for one, at in above.items() if at not in ("", run_id)]
            if not climbing:
                break
            with available():
                pipe = self._redis.pipeline(transaction=False)
                for one in climbing:
                    pipe.hget(keys.run(above[one]), "parent")
                parents = await pipe.execute()
            above |= {
                one: (parent or b"").decode() for one, parent in zip(climbing, parents, strict=True)
            }
        return {one for one, at in above.items() if at == run_id}

    async def several(self, input_ids: Sequence[str], tenant: str) -> list[InputRequest]:
        """Those of the questions that there are."""
        named = [(one, _ID.fullmatch(one)) for one in input_ids]
        known = [(one, match["run"], match["part"]) for one, match in named if match]
        if not known:
            return []
        with available():
            pipe = self._redis.pipeline(transaction=False)
            for _, run_id, part in known:
                pipe.hmget(keys.inputs(run_id), [part, f"{part}:answer"])
                pipe.hmget(keys.run(run_id), ["tenant", "root"])
            replies = await pipe.execute()
        pairs = zip(known, replies[::2], replies[1::2], strict=True)
        return [
            _request_from(one, run_id, root.decode(), stored, given)
            for (one, run_id, _), (stored, given), (owner, root) in pairs
            if stored is not None and owner is not None and owner.decode() == tenant
        ]

    async def answer(self, asked: InputRequest, tenant: str, answer: Answer) -> bool:
        """Records the answer and wakes the run; false when the same answer was given before.

        Raises NotFound; Conflict: answered in another way, or its run has ended; Gone: it has expired.
        """
        given = orjson.dumps(answer.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
        fields = {"digest": asked.request.digest, "agent": asked.request.agent}
        outcome = orjson.dumps({**fields, "result": orjson.Fragment(given)})
        event = InputAnswered(input_id=asked.input_id, decision=answer.decision)
        [verdict] = await self._scripts.call(
            Script.ANSWER,
            *(asked.run_id, tenant, asked.input_id.partition("-")[2], asked.seen),
            *(hashlib.sha256(given).hexdigest()[:16], outcome[1:], given),
            *Draft(event=event, agent=asked.request.agent, step=asked.step).fields(),
        )
        match verdict:
            case b"answered" | b"repeated":
                return bool(verdict == b"answered")
            case b"missing":
                raise NotFound(f"there is no input request {asked.input_id}")
            case b"differs":
                raise Conflict("it was answered before, in another way")
            case b"changed":
                raise Conflict(CHANGED)
            case b"expired":
                raise Gone("nobody answered in time; the run went on without an answer")
            case b"newer":
                raise StorageUnavailable(NEWER)
            case _:
                raise Conflict("the run does not wait for this any more")


def _request_from(
    input_id: str, run_id: str, root: str, stored: bytes, given: bytes | None
) -> InputRequest:
    state, created, expires, step, text = stored.decode().split("|", 4)
    answer, answered_at = None, None
    # One that is asked again, after a retry, may have an answer from before.
    if given is not None and state == State.ANSWERED:
        _, moment, body = given.decode().split("|", 2)
        answer, answered_at = Answer.model_validate_json(body), int(moment)
    return InputRequest(
        input_id=input_id,
        run_id=run_id,
        root=root,
        step=step,
        state=State(state),
        created_at=int(created),
        expires_at=int(expires),
        request=Request.model_validate_json(text),
        seen=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(),
        answer=answer,
        answered_at=answered_at,
    )
