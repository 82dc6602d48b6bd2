"""Each invariant finds the breach that is planted for it, and finds none in good records."""

from collections.abc import Callable
from dataclasses import replace

import orjson
import pytest

from tests.chaos.checker import CHECKS, breaches
from tests.chaos.evidence import Evidence, LoggedEvent, RunKept, StepKept
from tests.chaos.households import Household
from tests.chaos.recorders import ModelCallSeen, Order, ToolCallSeen
from tests.chaos.workload import Accepted, Reading

RUN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OTHER = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
ORDER = Order(5, legs=1, width=1, nap_ms=0, agent=True)
ROOT, CHILD = "01K00000000000000000000001", "01K00000000000000000000002"
HOME = Household(5, rooms=1, asks=False, deep=False)
STEPS = ("leg:0/go", "leg:0/branch:0", "leg:0/seen", "leg:0/back")
Plant = Callable[[Evidence], None]


def event(seq: int, kind: str, epoch: int = 1, step: str = "", **data: object) -> LoggedEvent:
    return LoggedEvent(seq, kind, 1000 + seq, epoch, step, data)


def call(step: str, at: float, pid: int = 11) -> ToolCallSeen:
    return ToolCallSeen(RUN, step, f"{RUN}/{step}", pid, at, f'{{"step":"{step}"}}')


def good() -> Evidence:
    """One run that a crash hit between two steps: resumed once, one step executed twice."""
    events = [
        event(1, "run.created", 0),
        event(2, "run.started", 1, worker="host-11-aa"),
        event(3, "run.resumed", 2, worker="host-12-bb", reason="crash"),
        event(4, "source.found", 2, "leg:0/seen"),
        event(5, "run.completed", 2),
    ]
    journal = {"leg:0/go": StepKept(2, 1, 1100), "leg:0/branch:0": StepKept(3, 2, 1200)}
    journal |= {"leg:0/seen": StepKept(3, 2, 1250), "leg:0/back": StepKept(4, 2, 1300)}
    journal |= {f"researcher/{name}": StepKept(4, 2, 1310) for name in ("one", "two", "three")}
    record = {"status": "completed", "seq": "5", "output": orjson.dumps(ORDER.output).decode()}
    record |= {"model_calls": "2", "input_tokens": "20", "output_tokens": "10"}
    reading = Reading(RUN, [(one.seq, one.type, "") for one in events])
    evidence = Evidence(
        accepted=[Accepted(RUN, ORDER, 0.0, ended={"status": "completed"}, reading=reading)],
        runs={RUN: RunKept(record, events, journal)},
        keys={f"run:{RUN}": -1, f"run:{RUN}:journal": 5000, f"run:{RUN}:events": 5000, "due": -1},
        due={RUN},
        tool_log=[
            *(call("leg:0/go", 1050), call("leg:0/branch:0", 1120)),
            *(call("leg:0/branch:0", 1150, 12), call("leg:0/back", 1270, 12)),
        ],
        model_log=[ModelCallSeen(RUN, 1, 1305), ModelCallSeen(RUN, 2, 1308)],
        left_after_delete={"sweep": -1, "claims:x": 100},
    )
    add_tree(evidence)
    return evidence


def add_tree(evidence: Evidence) -> None:
    """A household with one room, and the run that was in it."""
    below = [
        event(1, "run.created", 0),
        event(2, "run.started", 1, worker="host-11-aa"),
        event(3, "turn.completed", 1, "researcher/turn:1"),
        event(4, "run.completed", 1),
    ]
    kinds = {"run.started": "subtask.started", "run.completed": "subtask.completed"}
    copies = [replace(one, run=CHILD, type=kinds.get(one.type, one.type)) for one in below[1:]]
    own = [
        *(event(1, "run.created", 0), event(2, "run.started", 1, worker="host-12-bb")),
        event(3, "run.waiting", 1),
        *(replace(one, seq=4 + place) for place, one in enumerate(copies)),
        event(7, "run.resumed", 2, worker="host-11-aa", reason="child"),
        event(8, "run.completed", 2),
    ]
    room = HOME.room(0)
    usage = {"model_calls": 2, "input_tokens": 20, "output_tokens": 10}
    journal = {f"step:{n}": StepKept(3, 1, 1400) for n in range(room.steps - 1)}
    journal |= {"researcher/turn:1": StepKept(3, 1, 1400, usage=usage)}
    record = {"status": "completed", "root": ROOT, "parent": ROOT, "subtask": "room:0", "seq": "4"}
    record |= {"output": orjson.dumps(room.output).decode()}
    evidence.runs[CHILD] = RunKept(record, below, journal)
    end = {"run_id": CHILD, "status": "completed", "output": room.output, "error": None}
    steps = {"knock": StepKept(2, 1, 1), "room:0": StepKept(2, 1, 1), "lock": StepKept(7, 2, 1)}
    steps["room:0/end"] = StepKept(6, 1, 1, end)
    record = {"status": "completed", "root": ROOT, "seq": "8", "asking": "0"}
    record |= {name: str(value) for name, value in usage.items()}
    record |= {"output": orjson.dumps(HOME.output).decode()}
    budget = {"limit_tokens": "100", "spent_tokens": "45", "lost_tokens": "15"}
    budget |= {"limit_model_calls": "9", "spent_model_calls": "2"}
    evidence.runs[ROOT] = RunKept(record, own, steps, {CHILD}, budget)
    evidence.accepted.append(Accepted(ROOT, HOME, 0.0, ended={"status": "completed"}))
    evidence.keys |= {f"run:{ROOT}": -1, f"run:{ROOT}:tree": 5000, f"run:{CHILD}": -1}
    evidence.due.add(ROOT)


def record(**values: str) -> Plant:
    return lambda evidence: evidence.runs[RUN].record.update(values)


def step(name: str, **values: int) -> Plant:
    def plant(evidence: Evidence) -> None:
        journal = evidence.runs[RUN].journal
        journal[name] = replace(journal[name], **values)

    return plant


def of(run: str, **values: str) -> Plant:
    return lambda evidence: evidence.runs[run].record.update(values)


def money(**values: str) -> Plant:
    return lambda evidence: evidence.runs[ROOT].budget.update(values)


def told_end(**values: object) -> Plant:
    def plant(evidence: Evidence) -> None:
        journal = evidence.runs[ROOT].journal
        end = journal["room:0/end"]
        journal["room:0/end"] = replace(end, result=end.result | values)

    return plant


def drop_event(place: int) -> Plant:
    return lambda evidence: evidence.runs[RUN].events.__delitem__(place)


def other_event(place: int, **values: object) -> Plant:
    def plant(evidence: Evidence) -> None:
        events = evidence.runs[RUN].events
        events[place] = replace(events[place], **values)

    return plant


def again(*calls: ToolCallSeen) -> Plant:
    return lambda evidence: evidence.tool_log.extend(calls)


def key(name: str, ttl: int) -> Plant:
    return lambda evidence: evidence.keys.update({name: ttl})


def seen(*what: tuple[int, str, str]) -> Plant:
    def plant(evidence: Evidence) -> None:
        reading = evidence.accepted[0].reading
        assert reading is not None
        reading.seen = [*reading.seen[:3], *what]

    return plant


PLANTS: list[tuple[str, str, Plant]] = [
    ("I1", "never ended", lambda e: e.stuck.append(RUN)),
    ("I1", "lost", lambda e: e.runs.clear()),
    ("I1", "never accepted", lambda e: e.runs.update({OTHER: e.runs[RUN]})),
    ("I1", "failed", record(status="failed")),
    ("I1", "another output", record(output='{"checksum":"","steps":7}')),
    ("I1", "told otherwise", lambda e: e.accepted[0].ended.update(status="failed")),
    ("I1", "a step is missing", lambda e: e.runs[RUN].journal.popitem()),
    ("I2", "a gap", drop_event(3)),
    ("I2", "the record counts further", record(seq="6")),
    ("I2", "two ends", other_event(3, type="run.failed")),
    ("I2", "the end is not the last", other_event(4, type="source.found")),
    ("I2", "an event twice", other_event(2, type="source.found", step="leg:0/seen")),
    ("I2", "a reader missed one", seen((5, "run.completed", ""))),
    ("I2", "a reader saw one twice", seen((3, "", ""), (4, "", ""), (5, "", ""))),
    ("I3", "executed after its commit", again(call("leg:0/go", 1200, 12))),
    ("I3", "slept before the commit, came late", again(call("leg:0/back", 9000, 77))),
    ("I4", "more than its faults", again(call("leg:0/go", 1060, 12), call("leg:0/go", 1061, 13))),
    ("I4", "twice by one claim", again(call("leg:0/go", 1060))),
    ("I4", "asked in two ways", again(replace(call("leg:0/go", 1060, 12), body="{}"))),
    ("I4", "more than in flight", again(call("leg:0/go", 1060, 12), call("leg:0/back", 1271, 11))),
    ("I5", "a turn thrice", lambda e: e.model_log.extend([ModelCallSeen(RUN, 1, 1)] * 2)),
    ("I5", "other usage", record(input_tokens="30")),
    ("I6", "an old epoch wrote an event", other_event(3, epoch=1)),
    ("I6", "an epoch was left out", other_event(2, epoch=3)),
    ("I6", "an old epoch committed", step("leg:0/back", epoch=1)),
    ("I6", "an epoch that never was", step("leg:0/back", epoch=9)),
    (
        "I7",
        "never started",
        other_event(1, type="run.resumed", data={"reason": "x", "worker": "h-11-a"}),
    ),
    ("I7", "waited and never resumed", other_event(3, type="run.waiting")),
    ("I8", "the record expires", key(f"run:{RUN}", 100)),
    ("I8", "the journal stays", key(f"run:{RUN}:journal", -1)),
    ("I8", "a live run expires", record(status="running")),
    ("I9", "in the queue", lambda e: e.queue.append(f"{RUN}:1")),
    ("I9", "an arq body", key(f"arq:job:{RUN}:1", -1)),
    ("I9", "its starts", key(f"run:{RUN}:starts", 5000)),
    ("I9", "nobody looks", lambda e: e.due.clear()),
    ("I9", "left after delete", lambda e: e.left_after_delete.update({"index:default": -1})),
    ("I1", "a child of nobody", lambda e: e.accepted.pop()),
    ("I1", "a child with another output", of(CHILD, output="{}")),
    ("I8", "a child's key stays", key(f"run:{CHILD}:journal", -1)),
    ("T1", "a child lives on", of(CHILD, status="running")),
    ("T1", "a child too many", lambda e: e.runs.update({OTHER: e.runs[CHILD]})),
    ("T1", "another end was told", told_end(output={})),
    ("T1", "no end was told", lambda e: e.runs[ROOT].journal.pop("room:0/end")),
    ("T1", "an event was not copied", lambda e: e.runs[ROOT].events.pop(4)),
    ("T1", "an end was copied twice", lambda e: e.runs[ROOT].events.append(e.runs[ROOT].events[5])),
    ("T1", "the root does not know it", lambda e: e.runs[ROOT].tree.clear()),
    ("T1", "a question is open", of(ROOT, asking="1")),
    ("T1", "the inbox is not empty", key("inputs:default", -1)),
    ("T2", "something is reserved", money(reserved_tokens="7")),
    ("T2", "a tool call is reserved", money(reserved_tool_calls="1")),
    ("T2", "a reservation stays", money(**{f"reserved:{CHILD}:turn:1": "9|0|1|0"})),
    ("T2", "a call is not spent", lambda e: e.model_log.extend([ModelCallSeen(CHILD, 2, 1)] * 3)),
    ("T2", "spent too little", money(spent_tokens="44")),
    ("T2", "above the limit", money(limit_tokens="44")),
    ("G10", "a 500", lambda e: e.bad_answers.append("500")),
]


def test_good_records_breach_nothing() -> None:
    assert not any(breaches(good()).values()), breaches(good())


@pytest.mark.parametrize(
    ("check", "plant"),
    [pytest.param(check, plant, id=f"{check} {name}") for check, name, plant in PLANTS],
)
def test_a_planted_breach_is_found(check: str, plant: Plant) -> None:
    evidence = good()
    plant(evidence)
    assert breaches(evidence)[check]


def test_every_check_has_a_plant() -> None:
    assert {check for check, _, _ in PLANTS} == CHECKS.keys()


def test_what_was_in_flight_when_its_process_froze_is_no_breach() -> None:
    evidence = good()
    evidence.tool_log.append(call("leg:0/branch:0", 1510, 11))
    evidence.tool_log.pop(1)
    assert breaches(evidence)["I3"]
    evidence.frozen.append((11, 1120.0, 1500.0))
    assert not breaches(evidence)["I3"]
