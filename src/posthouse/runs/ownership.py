"""What a worker holds when it owns a run."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Claimed:
    """A claim's row: the run as it stood, and the fence that every write must carry. Times in ms by Redis' clock.

    `down_since` is when the run first parked for the model's endpoint with no step since; 0 when it has not.
    `copied` of its events are those of its children, `retried_seq` is that of its last retry (0: none), `models`
    JSON of tier -> models, "" for those of the fleet.
    """

    run_id: str
    claim_id: str
    epoch: int
    dispatch: int
    seq: int
    signals: int
    workflow: str
    version: int
    input: bytes
    root: str
    tenant: str
    steps: int
    reason: str
    queued_at: int
    started_at: int
    looks: int
    crashes: int
    claimed_at: int
    down_since: int
    parent: str = ""
    retried_seq: int = 0
    budgeted: bool = False
    copied: int = 0
    models: str = ""
    subtask: str = ""

    @property
    def suspect(self) -> bool:
        """Whether its last owners died one after another without a step; it must work alone."""
        return self.crashes >= SUSPECT_AFTER

    @property
    def fence(self) -> str:
        """What every write of this ownership carries; refused when it is no longer the current one."""
        return f"{self.epoch}:{self.claim_id}"


def claimed_from(claim_id: str, row: list[Any]) -> Claimed:
    """The claim from a row of the script's reply."""
    run_id, epoch, dispatch, seq, signals, workflow, version, given, root, tenant, *rest = row
    steps, reason, queued_at, started_at, looks, crashes, claimed_at, down_since, *more = rest
    parent, retried_seq, budgeted, copied, models, subtask = more
    return Claimed(
        run_id=run_id.decode(),
        claim_id=claim_id,
        epoch=int(epoch),
        dispatch=int(dispatch),
        seq=int(seq),
        signals=int(signals),
        workflow=workflow.decode(),
        version=int(version),
        input=given,
        root=root.decode(),
        tenant=tenant.decode(),
        steps=int(steps),
        reason=reason.decode(),
        queued_at=int(queued_at),
        started_at=int(started_at),
        looks=int(looks),
        crashes=int(crashes),
        claimed_at=int(claimed_at),
        down_since=int(down_since),
        parent=parent.decode(),
        retried_seq=int(retried_seq),
        budgeted=budgeted == b"1",
        copied=int(copied),
        models=models.decode(),
        subtask=subtask.decode(),
    )


SUSPECT_AFTER = 2
POISONED_AFTER = 3


@dataclass(frozen=True)
class Lease:
    """One entry of a heartbeat: a run, its fence, and the highest seq that its worker was told."""

    run_id: str
    fence: str
    told: int


@dataclass(frozen=True)
class Swept:
    """What one sweep found: leases that lapsed, timers that rang, lost entries, ended trees, broken records.

    And what scripts, this one or others, have ended since the last sweep; `cancelled` with a run above.
    """

    lapsed: int
    woken: int
    requeued: int
    purged: int
    broken: int
    timed_out: int
    poisoned: int
    cancelled: int
    more: bool
