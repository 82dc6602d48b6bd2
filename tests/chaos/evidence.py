"""What the checker judges: everything that Redis holds at the end, and every log that others kept."""

from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from tests.chaos.recorders import ModelCallSeen, ToolCallSeen
from tests.chaos.workload import Accepted

GONE = -2


@dataclass(frozen=True)
class LoggedEvent:
    """An event of a run's log; `run` is that of a run below it that it was copied from."""

    seq: int
    type: str
    time: int
    epoch: int
    step: str
    data: dict[str, Any]
    run: str = ""


@dataclass(frozen=True)
class StepKept:
    """A journalled step: when (ms by Redis' clock) and under which epoch and seq it was committed, and its result."""

    seq: int
    epoch: int
    time: int
    result: Any = None
    usage: dict[str, int] = field(default_factory=dict)


@dataclass
class RunKept:
    """One run as Redis holds it; `tree` and `budget` are those of a root."""

    record: dict[str, str]
    events: list[LoggedEvent] = field(default_factory=list)
    journal: dict[str, StepKept] = field(default_factory=dict)
    tree: set[str] = field(default_factory=set)
    budget: dict[str, str] = field(default_factory=dict)

    @property
    def own(self) -> list[LoggedEvent]:
        """The events that are its own."""
        return [event for event in self.events if not event.run]


@dataclass
class Evidence:
    """All of it. `keys` are the names with their time to live in ms, -1 for none; `due` and `queue` are members.

    `frozen` says when a process stood still: pid, from, until (ms since 1970). `claims_of` maps what stands in
    `run.started` events to a pid.
    """

    accepted: list[Accepted] = field(default_factory=list)
    runs: dict[str, RunKept] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    due: set[str] = field(default_factory=set)
    queue: list[str] = field(default_factory=list)
    tool_log: list[ToolCallSeen] = field(default_factory=list)
    model_log: list[ModelCallSeen] = field(default_factory=list)
    frozen: list[tuple[int, float, float]] = field(default_factory=list)
    bad_answers: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    left_after_delete: dict[str, int] = field(default_factory=dict)


async def key_times(redis: Redis) -> dict[str, int]:
    """Every key with its time to live; not one that went in between."""
    names = [key async for key in redis.scan_iter(count=1000)]
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.pttl(name)
    times = zip(names, await pipe.execute(), strict=True)
    return {name.decode(): ttl for name, ttl in times if ttl != GONE}


async def run_kept(redis: Redis, run: str) -> RunKept:
    """The run with its log and its journal."""
    pipe = redis.pipeline(transaction=False)
    pipe.hgetall(f"run:{run}")
    pipe.xrange(f"run:{run}:events")
    pipe.hgetall(f"run:{run}:journal")
    pipe.smembers(f"run:{run}:tree")
    pipe.hgetall(f"run:{run}:budget")
    record, entries, journal, tree, budget = await pipe.execute()
    return RunKept(
        {name.decode(): value.decode() for name, value in record.items()},
        [_event(run, entry, fields) for entry, fields in entries],
        {step.decode(): _step(outcome) for step, outcome in journal.items()},
        {member.decode() for member in tree},
        {name.decode(): value.decode() for name, value in budget.items()},
    )


def _event(run: str, entry: bytes, fields: dict[bytes, bytes]) -> LoggedEvent:
    plain = {name.decode(): value.decode() for name, value in fields.items()}
    return LoggedEvent(
        int(entry.split(b"-")[0]),
        plain["type"],
        int(plain["time"]),
        int(plain["epoch"]),
        plain["step"],
        orjson.loads(plain["data"]),
        "" if plain["run_id"] == run else plain["run_id"],
    )


def _step(outcome: bytes) -> StepKept:
    plain = orjson.loads(outcome)
    return StepKept(
        *(plain["seq"], plain["epoch"], plain["time"]), plain.get("result"), plain.get("usage", {})
    )


async def collect(redis: Redis, evidence: Evidence) -> None:
    """Adds what Redis holds to the logs that are in there already."""
    evidence.keys = await key_times(redis)
    evidence.due = {member.decode() for member in await redis.zrange("due", 0, -1)}
    evidence.queue = [member.decode() for member in await redis.zrange("arq:queue", 0, -1)]
    runs = [name.split(":")[1] for name in evidence.keys if name.startswith("run:")]
    for run in sorted(set(runs)):
        evidence.runs[run] = await run_kept(redis, run)
