"""What may happen to a run: one typed method for each script that changes it as a whole.

Every transition may be repeated after a lost reply and then gives its first answer. All raise StorageUnavailable.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from posthouse.errors import Conflict, IdempotencyMismatch, NotFound, OwnershipLost
from posthouse.events.types import Draft
from posthouse.runs.model import SCHEMA_VERSION, Status
from posthouse.runs.ownership import Claimed, Lease, Swept, claimed_from
from posthouse.storage.scripts import Script, Scripts, rows

CLAIM_LIMIT = 32
HEARTBEAT_LIMIT = 200
SWEEP_LIMIT = 100


@dataclass(frozen=True)
class Acceptance:
    """A run that is to be accepted. `input` and `metadata` are JSON text; ttl counts from the end."""

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

    def __init__(self, redis: Redis, scripts: Scripts | None = None) -> None:
        self._scripts = scripts or Scripts(redis)

    async def accept(self, run: Acceptance) -> Accepted:
        """Writes record, first event and queue entry at once. Raises IdempotencyMismatch."""
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
        )
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

    async def release(self, run: Claimed, told: int) -> None:
        """Gives the run back and enqueues it at once; it is not counted as a crash."""
        await self._scripts.call(Script.RELEASE, run.run_id, run.fence, told)

    async def finish(self, run: Claimed, told: int, ending: Ending) -> None:
        """Ends the run. Raises OwnershipLost when somebody else owns or has ended it."""
        [verdict] = await self._scripts.call(
            Script.FINISH,
            *(run.run_id, run.fence, told, ending.status, ending.output, ending.error),
            *rows([ending.event.fields()]),
        )
        if verdict != b"finished":
            raise OwnershipLost(run.run_id)

    async def delete(self, run_id: str, tenant: str) -> None:
        """Removes an ended root with its whole tree. Raises NotFound, or Conflict while it lives or for a child."""
        [verdict] = await self._scripts.call(Script.DELETE, run_id, tenant)
        match verdict:
            case b"deleted":
                return
            case b"missing":
                raise NotFound(f"there is no run {run_id}")
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
        lapsed, woken, requeued, purged, broken, more = reply
        return Swept(lapsed, woken, requeued, purged, broken, bool(more))
