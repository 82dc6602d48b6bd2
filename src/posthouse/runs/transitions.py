"""What may happen to a run: one typed method for each script that changes it as a whole.

Every transition may be repeated after a lost reply and then gives its first answer. All raise StorageUnavailable.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from posthouse.errors import (
    Conflict,
    IdempotencyMismatch,
    NotFound,
    OwnershipLost,
    QueueFull,
    StorageUnavailable,
)
from posthouse.events.types import Draft, RunCancelled, RunRetried
from posthouse.runs.model import NEWER, SCHEMA_VERSION, Status
from posthouse.runs.ownership import POISONED_AFTER, Claimed, Lease, Swept, claimed_from
from posthouse.storage.scripts import Script, Scripts, rows

_FULL = {
    b"depth": "too many runs wait to begin; try again later",
    b"age": "runs wait too long to begin; try again later",
    b"memory": "Redis is nearly full; try again later",
    b"later": "too many runs wait for their time; try again later",
}
CLAIM_LIMIT = 32
HEARTBEAT_LIMIT = 200
SWEEP_LIMIT = 100


@dataclass(frozen=True)
class Acceptance:
    """A run that is to be accepted. `input` and `metadata` are JSON text; ttl counts from the end.

    `models` is JSON of tier -> models, "" for those of the fleet.
    Band 1 to 9, lower first. `not_before_ms` by Redis' clock, 0 for now; `timeout_ms` from its start, 0 for none.
    """

    run_id: str
    tenant: str
    workflow: str
    version: int
    input: str
    metadata: str
    created: Draft
    ttl_ms: int
    band: int = 5
    idempotency_key: str = ""
    fingerprint: str = ""
    idempotency_ttl_ms: int = 86_400_000
    not_before_ms: int = 0
    timeout_ms: int = 0
    models: str = ""
    budget: tuple[tuple[str, str | int], ...] = ()


@dataclass(frozen=True)
class Admission:
    """What a fleet takes in: runs that wait to begin, how long the first of them may wait, how full Redis may be.

    As many again may wait for their time (`not_before`).
    """

    depth: int = 10_000
    age_ms: int = 3_600_000
    memory_percent: int = 90


@dataclass(frozen=True)
class Accepted:
    """The first answer to a submission; `replayed` when an earlier one with the same key made the run."""

    run_id: str
    created_at: int
    replayed: bool


@dataclass(frozen=True)
class Ending:
    """How a run ends. `output` and `error` are JSON text, "" for none."""

    status: Status
    event: Draft
    output: str = ""
    error: str = ""


class Transitions:
    """The transitions of runs on one Redis client; `scripts` when they are run in another way than usual."""

    def __init__(
        self, redis: Redis, scripts: Scripts | None = None, admission: Admission | None = None
    ) -> None:
        self._scripts = scripts or Scripts(redis)
        admission = admission or Admission()
        self._bounds = (admission.depth, admission.age_ms, admission.memory_percent)

    async def accept(self, run: Acceptance) -> Accepted:
        """Writes record, first event and queue entry at once. Raises IdempotencyMismatch, QueueFull."""
        verdict, run_id, created_at = await self._scripts.call(
            Script.ACCEPT,
            *(
                run.run_id,
                run.tenant,
                run.workflow,
                run.version,
                SCHEMA_VERSION,
                run.input,
                run.metadata,
            ),
            *(run.band, run.ttl_ms, *run.created.fields()),
            *(run.idempotency_key, run.fingerprint, run.idempotency_ttl_ms),
            *(run.not_before_ms, run.timeout_ms),
            *self._bounds,
            *(run.models, *rows(run.budget)),
        )
        _refuse_when_full(verdict, run_id, created_at)
        if verdict == b"mismatch":
            raise IdempotencyMismatch("this Idempotency-Key was used before with another request")
        return Accepted(run_id.decode(), int(created_at), replayed=verdict == b"replayed")

    async def claim(
        self,
        worker: str,
        claim_id: str,
        lease_ms: int,
        limit: int,
        readable: Iterable[tuple[str, int]],
        *,
        job: str = "",
    ) -> list[Claimed]:
        """Takes up to `limit` runs from the queue, or the one of the given arq job, and owns them for the lease.

        Only the (workflow, version) pairs in `readable` are taken; others are held for a worker that reads them.
        """
        reply = await self._scripts.call(
            Script.CLAIM,
            *(worker, claim_id, lease_ms, min(limit, CLAIM_LIMIT), SCHEMA_VERSION, job),
            *rows([(f"{name}:{version}",) for name, version in readable]),
        )
        return [claimed_from(claim_id, row) for row in reply]

    async def heartbeat(
        self, worker: str, lease_ms: int, health: Mapping[str, str | int], leases: Sequence[Lease]
    ) -> list[Lease]:
        """Renews the leases (200 a call) and the worker's health key; answers with those that are lost."""
        lost: list[Lease] = []
        for start in range(0, max(len(leases), 1), HEARTBEAT_LIMIT):
            part = leases[start : start + HEARTBEAT_LIMIT]
            kept = await self._scripts.call(
                Script.HEARTBEAT,
                *(worker, lease_ms),
                *rows(list(health.items())),
                *rows([(lease.run_id, lease.fence, lease.told) for lease in part]),
            )
            lost += [lease for lease, answer in zip(part, kept, strict=True) if not answer]
        return lost

    async def release(self, run: Claimed, told: int, reason: str = "drain") -> None:
        """Gives the run back and enqueues it at once; it is not counted as a crash."""
        await self._scripts.call(Script.RELEASE, run.run_id, run.fence, told, reason)

    async def finish(self, run: Claimed, told: int, ending: Ending) -> None:
        """Ends the run. Raises OwnershipLost when somebody else owns or has ended it."""
        [verdict] = await self._scripts.call(
            Script.FINISH,
            *(run.run_id, run.fence, told, ending.status, ending.output, ending.error),
            *rows([ending.event.fields()]),
        )
        if verdict != b"finished":
            raise OwnershipLost(run.run_id)

    async def cancel(self, run_id: str, tenant: str) -> bool:
        """Ends the run at once, whoever works on it; its worker is told. False when it was cancelled before.

        Raises NotFound, Conflict: it has ended.
        """
        verdict, status = await self._scripts.call(
            Script.CANCEL, run_id, tenant, *Draft(event=RunCancelled()).fields()
        )
        match _on_a_known_run(verdict, run_id):
            case b"cancelled":
                return bool(status != b"cancelled")
            case _:
                raise Conflict(f"the run has ended: it is {status.decode()}")

    async def isolate(self, run: Claimed) -> None:
        """Says that this process, which has only this suspect, begins it now. Raises OwnershipLost."""
        [verdict] = await self._scripts.call(Script.ISOLATE, run.run_id, run.fence)
        if verdict != b"isolated":
            raise OwnershipLost(run.run_id)

    async def crash(self, run: Claimed) -> bool:
        """The process that worked on a suspect is dead: the run is tried again, or has its end now (true).

        Raises OwnershipLost.
        """
        [verdict] = await self._scripts.call(Script.CRASH, run.run_id, run.fence, POISONED_AFTER)
        if verdict not in (b"crashed", b"poisoned"):
            raise OwnershipLost(run.run_id)
        return bool(verdict == b"poisoned")

    async def retry(
        self,
        run_id: str,
        tenant: str,
        seen: int,
        again: Sequence[str],
        children: Sequence[tuple[str, Sequence[str]]] = (),
        limits: Sequence[tuple[str, str | int]] = (),
    ) -> None:
        """Makes an ended run pending again; the steps in `again` are set aside and done anew, the others stay.

        With it the `children` that ended without a result, parents first, each with its own steps that are done anew.
        `seen` is the seq of the record by which they were chosen. A run that a retry has made live stays as it is.
        `limits` are those of its budget from now on, as `Budget.rows` has them; Conflict for a run without a budget.
        Raises NotFound; Conflict for a child, a completed or a live run, or one that changed since; QueueFull.
        """
        verdict, status, *wait = await self._scripts.call(
            Script.RETRY,
            *(run_id, tenant, seen, *Draft(event=RunRetried(steps=len(again))).fields()),
            *rows([(key,) for key in again]),
            *rows([(child, "\n".join(steps)) for child, steps in children]),
            *self._bounds,
            *rows(limits),
        )
        _refuse_when_full(verdict, status, *wait)
        match _on_a_known_run(verdict, run_id):
            case b"retried":
                return
            case b"child":
                raise Conflict("a child run is retried with its root; retry the root")
            case b"live":
                raise Conflict(f"the run has not ended: it is {status.decode()}")
            case b"completed":
                raise Conflict("the run has completed; there is nothing to try again")
            case b"unlimited":
                raise Conflict("the run has no budget that a retry could raise")
            case _:
                raise Conflict("the run changed at the same moment; look at it again")

    async def delete(self, run_id: str, tenant: str) -> None:
        """Removes an ended root with its whole tree. Raises NotFound, or Conflict while it lives or for a child."""
        [verdict] = await self._scripts.call(Script.DELETE, run_id, tenant)
        match _on_a_known_run(verdict, run_id):
            case b"deleted":
                return
            case b"child":
                raise Conflict("a child run goes with its root; delete the root")
            case _:
                raise Conflict("the run has not ended; only an ended run can be deleted")

    async def sweep(
        self, lease_ms: int, *, may_end_leases: bool, readable: Iterable[tuple[str, int]]
    ) -> Swept:
        """Looks at the runs whose moment has come: lapsed leases, timers, lost queue entries, ended trees."""
        reply = await self._scripts.call(
            Script.SWEEP, lease_ms, int(may_end_leases), SWEEP_LIMIT, *rows(list(readable))
        )
        lapsed, woken, requeued, purged, broken, timed_out, poisoned, cancelled, more = reply
        found = (lapsed, woken, requeued, purged, broken)
        return Swept(*found, timed_out, poisoned, cancelled, bool(more))


def _on_a_known_run(verdict: bytes, run_id: str) -> bytes:
    """The verdict, unless it is that the run is not there, or is of a newer posthouse."""
    match verdict:
        case b"missing":
            raise NotFound(f"there is no run {run_id}")
        case b"newer":
            raise StorageUnavailable(NEWER)
        case _:
            return verdict


def _refuse_when_full(verdict: bytes, reason: bytes, wait: bytes | int = 0) -> None:
    """Raises QueueFull when that is what accept or retry answered; `wait` in seconds."""
    if verdict == b"full":
        raise QueueFull(_FULL[reason], retry_after=int(wait))
