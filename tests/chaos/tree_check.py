"""Whether Redis holds what the model of the trees says, and nothing else."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

import orjson

from posthouse.storage import keys
from tests.chaos.tree_model import Node

TENANT = "default"
SAYS = {
    "run.started": "subtask.started", "run.completed": "subtask.completed",
    "run.incomplete": "subtask.completed", "run.failed": "subtask.failed",
    "run.cancelled": "subtask.cancelled",
}  # fmt: skip
ENDS = {"run.completed", "run.incomplete", "run.failed", "run.cancelled"}
SPENT = ("tokens", "nano_usd", "model_calls", "tool_calls")
# Everything that a Redis holds, as it is in one moment: key, type, time to live, content.
SNAPSHOT = """
local all = {}
local read = { hash = {'HGETALL'}, zset = {'ZRANGE', 0, -1, 'WITHSCORES'}, set = {'SMEMBERS'}, list = {'LRANGE', 0, -1},
  stream = {'XRANGE', '-', '+'}, string = {'GET'} }
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local how = read[kind]
  all[#all + 1] = { key, redis.call('PTTL', key), redis.call(how[1], key, unpack(how, 2)) }
end
return all
"""
Entry: TypeAlias = tuple[str, str, int, str, dict[str, Any]]


class Snapshot:
    """Everything in Redis, in one moment."""

    def __init__(self, rows: list[Any]) -> None:
        self.ttl = {key.decode(): ttl for key, ttl, _ in rows}
        self._content = {key.decode(): content for key, _, content in rows}

    def hash(self, key: str) -> dict[str, str]:
        """A hash."""
        flat = [one.decode() for one in self._content.get(key, [])]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def text(self, key: str) -> str:
        """A string."""
        return str(self._content[key].decode())

    def members(self, key: str) -> list[str]:
        """The members of a set."""
        return [one.decode() for one in self._content.get(key, [])]

    def scores(self, key: str) -> dict[str, float]:
        """The members of a sorted set, with their scores."""
        flat = self._content.get(key, [])
        return {
            name.decode(): float(score) for name, score in zip(flat[::2], flat[1::2], strict=True)
        }

    def log(self, run_id: str) -> list[Entry]:
        """A run's events: type, run, epoch, step, data; numbers from 1 without a gap."""
        entries = []
        for place, (number, flat) in enumerate(self._content.get(keys.events(run_id), [])):
            assert int(number.split(b"-")[0]) == place + 1
            one = {a.decode(): b.decode() for a, b in zip(flat[::2], flat[1::2], strict=True)}
            data = orjson.loads(one["data"])
            entries.append((one["type"], one["run_id"], int(one["epoch"]), one["step"], data))
        return entries


def check(forest: list[Node], snapshot: Snapshot) -> None:
    """Whether Redis holds just what the model says. Raises AssertionError."""
    nodes = [node for root in forest for node in root.tree]
    _check_keys(forest, nodes, snapshot)
    for root in forest:
        _check_tree(root, snapshot)
        _check_logs(root, snapshot)
        for node in root.tree:
            _check_run(node, snapshot)


def _check_keys(forest: list[Node], nodes: list[Node], snapshot: Snapshot) -> None:
    waiting = {node.run_id for node in nodes if node.queued}
    assert {job.split(":")[0] for job in snapshot.scores(keys.QUEUE)} == waiting
    assert {key.split(":")[2] for key in snapshot.ttl if key.startswith("arq:j")} == waiting
    assert {key.split(":")[1] for key in snapshot.ttl if key.startswith("run:")} <= {
        node.run_id for node in nodes
    }
    indexes: dict[str, set[str]] = {keys.index(TENANT): {root.run_id for root in forest}}
    indexes[keys.index(TENANT, "dead")] = {node.run_id for node in nodes if node.poisoned}
    for node in nodes:
        of = TENANT if node.root is None else f"{TENANT}:children"
        indexes.setdefault(keys.index(of), set()).add(node.run_id)
        indexes.setdefault(keys.index(of, node.status), set()).add(node.run_id)
    stored = {key: set(snapshot.scores(key)) for key in snapshot.ttl if key.startswith("index:")}
    assert stored == {key: members for key, members in indexes.items() if members}
    assert set(snapshot.scores(keys.DUE)) <= {node.run_id for node in nodes}
    inbox = [name for root in forest for name in root.asking]
    assert sorted(snapshot.scores(keys.inbox(TENANT))) == sorted(inbox)


def _check_tree(root: Node, snapshot: Snapshot) -> None:
    record = snapshot.hash(keys.run(root.run_id))
    asking = root.asking
    assert sorted(snapshot.members(keys.open_inputs(root.run_id))) == sorted(asking)
    assert int(record.get("asking") or 0) == len(asking)
    assert set(snapshot.members(keys.tree(root.run_id))) == {one.run_id for one in root.members}
    if root.over:
        assert all(node.over for node in root.members)
    for key, ttl in snapshot.ttl.items():
        part = key.split(":")
        if part[0] == "run" and part[1] in {node.run_id for node in root.tree}:
            assert (ttl > 0) == (root.over and len(part) > 2), key
    _check_deadline(root, record)
    budget = snapshot.hash(keys.budget(root.run_id))
    if not root.limit:
        assert not budget
        return
    entries = [value for name, value in budget.items() if name.startswith("reserved:")]
    for place, what in enumerate(SPENT):
        total = sum(int(entry.split("|")[place]) for entry in entries)
        assert int(budget.get(f"reserved_{what}", 0)) == total
    reserved = sum(amount for node in root.tree for amount in node.reserved.values())
    assert int(budget.get("reserved_tokens", 0)) == reserved
    assert int(budget.get("spent_tokens", 0)) == root.spent
    assert int(budget.get("lost_tokens", 0)) == root.lost
    assert root.spent + reserved <= root.limit


def _check_deadline(root: Node, record: dict[str, str]) -> None:
    """It grows by exactly the time for which questions were open."""
    deadline, people = int(record.get("deadline") or 0), int(record.get("asked_ms") or 0)
    if not deadline or root.over:
        return
    if root.base is None:
        root.base = deadline - people
    assert deadline - people == root.base
    open_ms = root.waited if not root.asking else 0
    assert people >= open_ms


def _check_logs(root: Node, snapshot: Snapshot) -> None:
    """A root's log holds what each child says, once and in its order; of itself what it does."""
    log = snapshot.log(root.run_id)
    for node in root.members:
        said = list(_as_the_root_says(node, snapshot.log(node.run_id)))
        assert [entry for entry in log if entry[1] == node.run_id] == said
        kinds = Counter(entry[0] for entry in said)
        assert kinds["subtask.started"] == node.started
        ends = sum(kinds[name] for name in set(SAYS.values()) - {"subtask.started"})
        assert ends == node.retries + node.over
    record = snapshot.hash(keys.run(root.run_id))
    assert int(record.get("copied") or 0) == sum(entry[1] != root.run_id for entry in log)
    if root.over:
        assert log[-1][:2] == (f"run.{root.status}", root.run_id)


def _as_the_root_says(node: Node, log: list[Entry]) -> Iterator[Entry]:
    for kind, run_id, epoch, step, data in log:
        if not kind.startswith("run."):
            yield kind, run_id, epoch, step, data
        elif kind in SAYS:
            extra = {"status": kind[4:]} if SAYS[kind] == "subtask.completed" else {}
            yield SAYS[kind], run_id, epoch, step, {"subtask": node.key, **extra, **data}


def _check_run(node: Node, snapshot: Snapshot) -> None:
    run_id = node.run_id
    record, log = snapshot.hash(keys.run(run_id)), snapshot.log(run_id)
    assert record["status"] == node.status
    assert int(record["seq"]) == len(log)
    claim = record["claim"]
    assert (f"{record['epoch']}:{claim}" if claim else None) == node.fence
    if node.over:  # what rang in the sweep that ended its root may have rung before that or not
        node.signals = int(record["signals"])
    assert int(record["signals"]) == node.signals
    ends = [kind for kind, who, *_ in log if who == run_id and kind in ENDS]
    assert len(ends) == node.retries + node.over
    _check_journal(node, snapshot)
    waits = snapshot.hash(keys.waits(run_id))
    if node.over:
        assert not waits
        assert not snapshot.hash(keys.starts(run_id))
    else:
        awaited = {
            f"{key}/end"
            for key, child in node.spawned.items()
            if key not in node.ended and not child.over
        }
        awaited |= {key for key, asked in node.asked.items() if asked.state == "open"}
        assert set(waits) == awaited | ({"nap"} if node.naps else set())
    timers = [wait for wait in waits.values() if int(wait.split("|")[0])]
    deadline = int(record.get("deadline") or 0)
    endless = node.parked and not timers and not (deadline and not node.asking)
    needed = node.root is None if node.over else not endless
    # With a question open somebody may look in vain, when its deadline would have been.
    if needed or not deadline:
        assert (run_id in snapshot.scores(keys.DUE)) == needed


def _check_journal(node: Node, snapshot: Snapshot) -> None:
    journal = {
        key: orjson.loads(text) for key, text in snapshot.hash(keys.journal(node.run_id)).items()
    }
    for key, child in node.spawned.items():
        assert journal[key]["result"] == child.run_id
    for key, (child_id, status, output) in node.ended.items():
        outcome = journal[f"{key}/end"]
        kept = snapshot.text(keys.blob(node.run_id, outcome["blob"])) if "blob" in outcome else None
        end = orjson.loads(kept) if kept else outcome["result"]
        assert (end["run_id"], end["status"]) == (child_id, status)
        assert end["output"] == (None if output is None else orjson.loads(output))
    answers = {key: one.value for key, one in node.asked.items() if one.state == "answered"}
    for key, value in answers.items():
        assert journal[key]["result"]["value"] == value
    expired = {key for key, one in node.asked.items() if one.state == "expired"}
    assert journal.keys() - {"nap"} == (
        node.committed
        | node.spawned.keys()
        | {f"{key}/end" for key in node.ended}
        | answers.keys()
        | expired
    )
