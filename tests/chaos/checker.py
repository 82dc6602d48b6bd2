"""The invariants: pure functions of the evidence; each gives the breaches that it found, in words."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import orjson

from tests.chaos.evidence import Evidence, LoggedEvent, RunKept
from tests.chaos.households import Errand, Household
from tests.chaos.workload import Accepted

TERMINAL = {"completed", "incomplete", "failed", "cancelled"}
CLAIMS = ("run.started", "run.resumed")
HIT = {"crash", "lost", "drain", "isolation"}
# A frozen process may have been about to send: what arrives this soon after it woke was in flight at the fault.
WOKEN_MS = 500.0
ROUNDING_MS = 2.0
# The road of a run, one letter for each event that changes its status.
LETTERS = {
    "run.created": "c", "run.started": "s", "run.resumed": "r", "run.waiting": "w", "run.completed": "E",
    "run.incomplete": "E", "run.failed": "E", "run.cancelled": "E", "run.retried": "t",
}  # fmt: skip
LEGAL = re.compile(r"cs(r|wr)*E")
# What the fleet itself keeps, and what goes by itself.
FLEET_KEYS = {"sweep", "queue:counter", "queue:drained", "queue:wake", "workers", "held"}
PASSING_KEYS = ("worker:", "claims:", "idempotency:")


def one_end(evidence: Evidence) -> Iterator[str]:
    """I1: everything accepted ended once, with the exact output; nothing else is there."""
    accepted = {one.run: one for one in evidence.accepted}
    for run in evidence.stuck:
        yield f"{run} did not end"
    for run in accepted.keys() - evidence.runs.keys():
        yield f"{run} was accepted and is gone"
    for run in evidence.runs.keys() - accepted.keys():
        if root_of(evidence, run) not in accepted:
            yield f"{run} was never accepted and is there"
    for run, one in accepted.items():
        if run in evidence.runs:
            yield from _end_of(one, evidence.runs[run])
    for run, order in orders(evidence).items():
        if run not in accepted:
            yield from _end_of(Accepted(run, order, 0), evidence.runs[run])


def _end_of(one: Accepted, kept: RunKept) -> Iterator[str]:
    run, status = one.run, kept.record.get("status")
    if one.ended is not None and one.ended["status"] != status:
        yield f"{run} was told to a client as {one.ended['status']}"
    if status != one.wanted:
        yield f"{run} is {status}: {kept.record.get('error')}"
    if status != "completed":
        return
    if orjson.loads(kept.record["output"]) != one.order.output:
        yield f"{run} came to {kept.record['output']}"
    if one.order.steps != len(kept.journal):
        yield f"{run} has {len(kept.journal)} steps in its journal, not {one.order.steps}"


def events_without_gap(evidence: Evidence) -> Iterator[str]:
    """I2: numbers from 1 without a gap, one terminal event, the last; every reader saw just that."""
    for run, kept in evidence.runs.items():
        numbers = [event.seq for event in kept.events]
        if numbers != list(range(1, len(numbers) + 1)) or str(len(numbers)) != kept.record["seq"]:
            yield f"{run}: events {numbers[:5]}...{numbers[-3:]}, seq {kept.record['seq']}"
        ends = [event.seq for event in kept.events if LETTERS.get(event.type) == "E"]
        if kept.record["status"] in TERMINAL and ends != numbers[-1:]:
            yield f"{run}: terminal events at {ends} of {len(numbers)}"
        found = (event for event in kept.events if event.type == "source.found")
        once = Counter((event.run, event.step) for event in found)
        for (_, step), times in once.items():
            if times > 1:
                yield f"{run}: the event of step {step} was written {times} times"
    yield from _readers(evidence)


def _readers(evidence: Evidence) -> Iterator[str]:
    for one in evidence.accepted:
        if one.reading is None or one.run not in evidence.runs:
            continue
        log = [(event.seq, event.type) for event in evidence.runs[one.run].events]
        seen = [(seq, kind) for seq, kind, _ in one.reading.seen]
        if seen != log:
            first = next((i for i, (a, b) in enumerate(zip(seen, log, strict=False)) if a != b), -1)
            yield f"{one.run}: a reader saw {len(seen)} of {len(log)} events, other from {first}"


def no_step_again(evidence: Evidence) -> Iterator[str]:
    """I3: nothing is executed once it is in the journal."""
    for call in evidence.tool_log:
        kept = evidence.runs.get(call.run)
        step = kept.journal.get(call.step) if kept else None
        if step is None or call.at <= step.time + ROUNDING_MS:
            continue
        if not in_flight_when_frozen(evidence, call.pid, step.time, call.at):
            yield f"{call.run} {call.step}: executed {call.at - step.time:.0f} ms after its commit"


def in_flight_when_frozen(evidence: Evidence, pid: int, committed: float, at: float) -> bool:
    """Whether the process slept while another committed, and sent what it had begun to send as it woke."""
    return any(
        who == pid and since <= committed and until <= at <= until + WOKEN_MS
        for who, since, until in evidence.frozen
    )


def hit_claims(kept: RunKept) -> int:
    """How many claims of a run ended by a fault and not by the run."""
    return sum(event.type == "run.resumed" and event.data["reason"] in HIT for event in kept.events)


def few_executions(evidence: Evidence) -> Iterator[str]:
    """I4: a step is executed once more at most for each claim that a fault ended, and once by one claim."""
    by_step = Counter((call.run, call.step) for call in evidence.tool_log)
    by_process = Counter((call.run, call.step, call.pid) for call in evidence.tool_log)
    bodies = defaultdict(set)
    for call in evidence.tool_log:
        bodies[call.key].add(call.body)
    for key, texts in bodies.items():
        if len(texts) > 1:
            yield f"{key}: asked in {len(texts)} ways"
    for (run, step), times in by_step.items():
        if run in evidence.runs and times > 1 + hit_claims(evidence.runs[run]):
            yield f"{run} {step}: {times} times, with {hit_claims(evidence.runs[run])} faults"
    claims = Counter(
        (run, _pid(event))
        for run, kept in evidence.runs.items()
        for event in kept.events
        if event.type in CLAIMS
    )
    for (run, step, pid), times in by_process.items():
        if 0 < claims[run, pid] < times:
            yield f"{run} {step}: {times} times by process {pid}, which claimed it {claims[run, pid]} times"
    yield from _sum_of_extras(evidence, by_step)


def _sum_of_extras(evidence: Evidence, by_step: Counter[tuple[str, str]]) -> Iterator[str]:
    extras: Counter[str] = Counter()
    for (run, _), times in by_step.items():
        extras[run] += times - 1
    width = {run: order.width for run, order in orders(evidence).items()}
    for run, extra in extras.items():
        kept = evidence.runs.get(run)
        if kept and extra > hit_claims(kept) * max(1, width.get(run, 1)):
            yield f"{run}: {extra} extra executions, more than were in flight at its faults"


def spending_is_known(evidence: Evidence) -> Iterator[str]:
    """I5: the usage is what is in the journal; a model request is repeated only for a fault."""
    asked = Counter((call.run, call.turn) for call in evidence.model_log)
    for (run, turn), times in asked.items():
        kept = evidence.runs.get(run)
        if kept and times > 1 + hit_claims(kept):
            yield f"{run}: turn {turn} was asked {times} times"
    for one in evidence.accepted:
        kept = evidence.runs.get(one.run)
        agents = one.order.agents
        if kept is None or not agents or one.wanted != "completed":
            continue
        record = kept.record
        spent = tuple(
            int(record.get(f, 0)) for f in ("model_calls", "input_tokens", "output_tokens")
        )
        if spent != (2 * agents, 20 * agents, 10 * agents):
            yield f"{one.run}: its usage is {spent}"


def epochs_grow(evidence: Evidence) -> Iterator[str]:
    """I6: each claim raises the epoch by one, and nothing is written but by its owner."""
    for run, kept in evidence.runs.items():
        current, since = 0, {0: 0}
        for event in kept.own:
            if event.type in CLAIMS:
                current += 1
                since[current] = event.seq
            if event.epoch != current:
                yield f"{run}: event {event.seq} was written under epoch {event.epoch}, not {current}"
        for step, outcome in kept.journal.items():
            first, after = since.get(outcome.epoch), since.get(outcome.epoch + 1, 1 << 60)
            if first is None or not first <= outcome.seq < after:
                yield f"{run}: step {step} was committed under epoch {outcome.epoch} at {outcome.seq}"
    yield from _committed_by_owners(evidence)


def _committed_by_owners(evidence: Evidence) -> Iterator[str]:
    """A commit by a worker that lost the run would stand under an epoch whose owner never did the step."""
    executed = defaultdict(set)
    for call in evidence.tool_log:
        executed[call.run, call.step].add(call.pid)
    owners = {run: _owners(kept) for run, kept in evidence.runs.items()}
    workers = {pid for by_epoch in owners.values() for pid in by_epoch.values()}
    for run, kept in evidence.runs.items():
        for step, outcome in kept.journal.items():
            pids = executed[run, step]
            # The process of a suspect is no worker: its pid stands in no claim.
            if pids and pids <= workers and owners[run].get(outcome.epoch) not in pids:
                yield f"{run}: step {step} is of epoch {outcome.epoch}, whose owner never did it"


def _owners(kept: RunKept) -> dict[int, int]:
    """The process that claimed each epoch."""
    return {e.epoch: _pid(e) for e in kept.events if e.type in CLAIMS}


def _pid(claim: LoggedEvent) -> int:
    return int(claim.data["worker"].split("-")[-2])


def legal_roads(evidence: Evidence) -> Iterator[str]:
    """I7: the statuses went only along legal edges."""
    for run, kept in evidence.runs.items():
        road = "".join(LETTERS.get(event.type, "") for event in kept.events)
        if LEGAL.fullmatch(road) is None:
            yield f"{run}: {road}"


def times_to_live(evidence: Evidence) -> Iterator[str]:
    """I8: no live run has an expiry; everything of an ended one has, but the record, which the sweep removes."""
    for name, ttl in evidence.keys.items():
        if not name.startswith("run:"):
            continue
        run = name.split(":")[1]
        root = root_of(evidence, run)
        status = evidence.runs[root].record.get("status") if root in evidence.runs else None
        lasting = status not in TERMINAL or name == f"run:{run}"
        if lasting != (ttl < 0):
            yield f"{name} of a run that is {status} has a time to live of {ttl} ms"


def nothing_leaks(evidence: Evidence) -> Iterator[str]:
    """I9: no queue entry, no `due`, no wait, no start outlives its run; deleted, nothing at all is left."""
    live = {r for r, kept in evidence.runs.items() if kept.record.get("status") not in TERMINAL}
    for job in evidence.queue:
        if job.split(":")[0] not in live:
            yield f"arq:queue holds {job}"
    for name in evidence.keys:
        if name.startswith("arq:") and name != "arq:queue" and name.split(":")[2] not in live:
            yield f"{name} is left"
        if name.endswith((":waits", ":starts")) and name.split(":")[1] not in live:
            yield f"{name} is left"
    for run in evidence.runs.keys() - evidence.due:
        if run not in live and root_of(evidence, run) == run:
            yield f"{run} has ended and nobody will remove it: it is not in due"
    for name, ttl in evidence.left_after_delete.items():
        passing = name.startswith(PASSING_KEYS) and ttl >= 0
        if name not in FLEET_KEYS and not passing:
            yield f"{name} is left after its run was deleted (ttl {ttl})"


def truthful_answers(evidence: Evidence) -> Iterator[str]:
    """G10: the API answered 2xx, or 503 as a problem; nothing else."""
    yield from evidence.bad_answers


def orders(evidence: Evidence) -> dict[str, Errand]:
    """What was ordered of each run, those below the accepted ones included."""
    found: dict[str, Errand] = {one.run: one.order for one in evidence.accepted}
    left = [run for run in evidence.runs if run not in found]
    while left:
        later = []
        for run in left:
            record = evidence.runs[run].record
            above = found.get(record.get("parent", ""))
            if isinstance(above, Household):
                found[run] = above.room(int(record["subtask"].removeprefix("room:")))
            else:
                later.append(run)
        if later == left:
            break
        left = later
    return found


def root_of(evidence: Evidence, run: str) -> str:
    """The root of its tree; itself when it is none's child."""
    return evidence.runs[run].record.get("root", run) if run in evidence.runs else run


def whole_trees(evidence: Evidence) -> Iterator[str]:
    """T1: no child too many, none outlives its root, its parent sees its exact output, its root says what it says."""
    ordered = orders(evidence)
    for run, kept in evidence.runs.items():
        order = ordered.get(run)
        below = {one for one, other in evidence.runs.items() if other.record.get("parent") == run}
        wanted = len(order.children) if isinstance(order, Household) else 0
        if kept.record.get("status") == "completed" and len(below) != wanted:
            yield f"{run} has {len(below)} children, not {wanted}"
        for child in below:
            yield from _told(run, kept, child, evidence.runs[child])
        if root_of(evidence, run) == run:
            yield from _copied(evidence, run, kept)
        if int(kept.record.get("asking") or 0):
            yield f"{run} has open questions"
    for name in evidence.keys:
        if name.endswith(":open_inputs") or name.startswith("inputs:"):
            yield f"{name} is left"


def _told(run: str, kept: RunKept, child: str, below: RunKept) -> Iterator[str]:
    """What a parent knows of its child."""
    if below.record.get("status") not in TERMINAL:
        yield f"{child} lives though {run} has ended"
    end = kept.journal.get(f"{below.record.get('subtask')}/end")
    told = end.result if end else None
    output = orjson.loads(below.record.get("output") or "null")
    if not told or (told["run_id"], told["output"]) != (child, output):
        yield f"{run} was told of {child}: {told}, not {output}"


def _copied(evidence: Evidence, root: str, kept: RunKept) -> Iterator[str]:
    """What a root's log holds of the runs below it."""
    below = {run for run in evidence.runs if run != root and root_of(evidence, run) == root}
    if kept.tree != below:
        yield f"{root} knows of {len(kept.tree)} runs below it, not of {len(below)}"
    for run in below:
        copies = [event for event in kept.events if event.run == run]
        own = [(e.type, e.step) for e in evidence.runs[run].own if not e.type.startswith("run.")]
        said = [(e.type, e.step) for e in copies if not e.type.startswith("subtask.")]
        if own != said:
            yield f"{root} says {len(said)} of the {len(own)} events of {run}, or others"
        marks = [e.type for e in copies if e.type.startswith("subtask.")]
        if marks != ["subtask.started", "subtask.completed"]:
            yield f"{root} says of {run}: {marks}"


def budgets_add_up(evidence: Evidence) -> Iterator[str]:
    """T2: nothing is reserved any more; spent is what was settled and what was lost, and no call is left out."""
    of = {
        "tokens": ("input_tokens", "output_tokens", "wasted_tokens"),
        "model_calls": ("model_calls",),
    }
    for run, kept in evidence.runs.items():
        if not kept.budget:
            continue
        tree = [one for other, one in evidence.runs.items() if root_of(evidence, other) == run]
        left = [n for n, value in kept.budget.items() if n.startswith("reserved") and value != "0"]
        if left:
            yield f"{run}: still there: {left}"
        asked = sum(root_of(evidence, call.run) == run for call in evidence.model_log)
        if asked > int(kept.budget.get("spent_model_calls", 0)):
            yield f"{run}: {asked} model calls were made, more than are spent"
        for what, fields in of.items():
            stored = {k: int(kept.budget.get(f"{k}_{what}", 0)) for k in ("spent", "lost")}
            usages = [step.usage for one in tree for step in one.journal.values()]
            settled = sum(usage.get(name, 0) for usage in usages for name in fields)
            if stored["spent"] - stored["lost"] != settled:
                yield f"{run}: {what} are {stored}, and {settled} were settled"
            if stored["spent"] > int(kept.budget[f"limit_{what}"]):
                yield f"{run}: {what} are above their limit"


Check = Callable[[Evidence], Iterator[str]]
CHECKS: dict[str, Check] = {
    "I1": one_end,
    "I2": events_without_gap,
    "I3": no_step_again,
    "I4": few_executions,
    "I5": spending_is_known,
    "I6": epochs_grow,
    "I7": legal_roads,
    "I8": times_to_live,
    "I9": nothing_leaks,
    "T1": whole_trees,
    "T2": budgets_add_up,
    "G10": truthful_answers,
}


def breaches(evidence: Evidence) -> dict[str, list[str]]:
    """All checks: their ids, and what each of them found."""
    return {name: list(check(evidence)) for name, check in CHECKS.items()}
