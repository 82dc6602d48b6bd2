"""What a run and all below it took, from their journals: by agent, by model, by subtask."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import orjson
from redis.asyncio import Redis

from posthouse.journal.model import Usage
from posthouse.runs.model import RunRecord
from posthouse.storage import keys
from posthouse.storage.connect import available

K = TypeVar("K")

# Journals hold results too, so few are read at once.
JOURNALS_AT_ONCE = 20
RUNS_AT_ONCE = 200

_FIELDS = frozenset(one.name for one in fields(Usage))
_WHO = ["parent", "subtask", "workflow", "status"]


@dataclass(frozen=True)
class RunUsage:
    """What one run of a tree took by itself; `subtask` and `parent` are None for a root."""

    run_id: str
    subtask: str | None
    parent: str | None
    workflow: str
    status: str
    usage: Usage


@dataclass(frozen=True)
class Account:
    """What a tree took. The rows of each kind add up to the total.

    None stands for steps of no agent, and for what is not of a model. `set_aside` is that part of the total which
    went into steps that a retry did again.
    """

    total: Usage = field(default_factory=Usage)
    by_agent: Mapping[str | None, Usage] = field(default_factory=dict)
    by_model: Mapping[str | None, Usage] = field(default_factory=dict)
    by_run: tuple[RunUsage, ...] = ()
    set_aside: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Spent:
    """That part of an outcome which says what it took."""

    agent: str | None
    usage: Usage
    by_model: Mapping[str, Usage]
    set_aside: bool = False

    @classmethod
    def of(cls, stored: bytes, *, set_aside: bool = False) -> "Spent":
        """From an outcome as it is stored."""
        outcome = orjson.loads(stored)
        by_model = {name: _usage(taken) for name, taken in (outcome.get("by_model") or {}).items()}
        usage = _usage(outcome.get("usage") or {})
        return cls(outcome.get("agent") or None, usage, by_model, set_aside)


def account_of(runs: Sequence[tuple[RunUsage, Sequence[Spent]]]) -> Account:
    """The steps of every run of a tree, added up."""
    total, set_aside = Usage(), Usage()
    by_agent: dict[str | None, Usage] = {}
    by_model: dict[str | None, Usage] = {}
    by_run = []
    for run, steps in runs:
        of_run = Usage()
        for step in steps:
            of_run += step.usage
            _add(by_agent, step.agent, step.usage)
            for model, usage in _by_model(step):
                _add(by_model, model, usage)
            if step.set_aside:
                set_aside += step.usage
        total += of_run
        by_run.append(
            RunUsage(run.run_id, run.subtask, run.parent, run.workflow, run.status, of_run)
        )
    return Account(total, _rows(by_agent), _rows(by_model), tuple(by_run), set_aside)


class Accounts:
    """What all runs took, on one Redis client. Everything raises StorageUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def of(self, record: RunRecord) -> Account:
        """What the run and all below it took."""
        runs = await self._tree(record)
        found: list[tuple[RunUsage, list[Spent]]] = []
        for start in range(0, len(runs), JOURNALS_AT_ONCE):
            part = runs[start : start + JOURNALS_AT_ONCE]
            found += zip(part, await self._steps([run.run_id for run in part]), strict=True)
        return account_of(found)

    async def _tree(self, record: RunRecord) -> list[RunUsage]:
        """The run itself and what is below it, parents first."""
        top = RunUsage(
            *(record.run_id, record.subtask, record.parent, record.workflow, record.status),
            Usage(),
        )
        with available():
            members = await self._redis.smembers(keys.tree(record.root))  # type: ignore[misc]
        ids = sorted(member.decode() for member in members)
        found: dict[str, RunUsage] = {record.run_id: top}
        # Ids are made by many clocks: a child's may stand before its parent's.
        below: dict[str | None, list[RunUsage]] = {}
        for one in await self._known(ids):
            if one.run_id != record.run_id:
                below.setdefault(one.parent, []).append(one)
        level = [top]
        while level:
            level = [one for above in level for one in below.pop(above.run_id, ())]
            found |= {one.run_id: one for one in level}
        return list(found.values())

    async def _known(self, ids: Sequence[str]) -> list[RunUsage]:
        known = []
        for start in range(0, len(ids), RUNS_AT_ONCE):
            part = ids[start : start + RUNS_AT_ONCE]
            with available():
                pipe = self._redis.pipeline(transaction=False)
                for run_id in part:
                    pipe.hmget(keys.run(run_id), _WHO)
                rows = await pipe.execute()
            for run_id, row in zip(part, rows, strict=True):
                parent, subtask, workflow, status = ((cell or b"").decode() for cell in row)
                if status:
                    known.append(
                        RunUsage(run_id, subtask or None, parent or None, workflow, status, Usage())
                    )
        return known

    async def _steps(self, ids: Sequence[str]) -> list[list[Spent]]:
        with available():
            pipe = self._redis.pipeline(transaction=False)
            for run_id in ids:
                pipe.hvals(keys.journal(run_id))
                pipe.hvals(keys.archive(run_id))
            replies = await pipe.execute()
        return [
            [
                *(Spent.of(text) for text in journal),
                *(Spent.of(text, set_aside=True) for text in archive),
            ]
            for journal, archive in zip(replies[::2], replies[1::2], strict=True)
        ]


def _usage(stored: Mapping[str, Any]) -> Usage:
    return Usage(**{name: amount for name, amount in stored.items() if name in _FIELDS})


def _by_model(step: Spent) -> Iterable[tuple[str | None, Usage]]:
    """The step's usage by model, and what is not of a model."""
    yield from step.by_model.items()
    named = sum(step.by_model.values(), Usage())
    yield (
        None,
        Usage(**{name: amount - getattr(named, name) for name, amount in vars(step.usage).items()}),
    )


def _add(rows: dict[K, Usage], key: K, usage: Usage) -> None:
    if usage.spent():
        rows[key] = rows.get(key, Usage()) + usage


def _rows(rows: Mapping[str | None, Usage]) -> dict[str | None, Usage]:
    """Named ones first, in the order of their names."""
    return dict(sorted(rows.items(), key=lambda row: (row[0] is None, row[0] or "")))
