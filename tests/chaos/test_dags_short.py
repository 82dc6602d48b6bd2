"""The short form of `python -m tests.chaos dags`, and how it judges."""

import random
from pathlib import Path

from posthouse.workflows.plan import Plan, Subtask
from tests.chaos.dags import Load, Told, dags, gaps_in, random_plan, wrong_order


async def test_plans_are_carried_out_while_a_worker_dies(tmp_path: Path) -> None:
    load = Load(plans=4, most=16, at_once=2, kills=1, workers=2, kill_every=0.2, lease=1.0)
    report = await dags(tmp_path, 1, load)
    print(f"\n{report.table()}")
    assert report.good, report.table()


def plan() -> Plan:
    chain = {"a": (), "b": ("a",), "c": ("a", "b")}
    return Plan(
        subtasks=tuple(
            Subtask(id=one, agent="x", task=one, depends_on=before) for one, before in chain.items()
        )
    )


def told(*words: str) -> list[Told]:
    return [
        Told(kind, name, name, 10 * number)
        for number, (kind, name) in enumerate(word.split() for word in words)
    ]


def test_what_is_out_of_order_is_found() -> None:
    good = ["started a", "completed a", "started b", "completed b", "started c", "completed c"]
    assert list(wrong_order(plan(), told(*good))) == []
    assert list(gaps_in(plan(), told(*good))) == [10, 10]
    early = [good[0], good[2], good[1], *good[3:]]
    assert list(wrong_order(plan(), told(*early))) == ["b began before a had ended"]
    assert list(wrong_order(plan(), told(*good, "completed c"))) == ["3 began and 4 ended, of 3"]
    assert "c failed" in list(wrong_order(plan(), told(*good[:-1], "failed c")))


def test_random_plans_are_of_every_size() -> None:
    sizes = {len(random_plan(random.Random(seed), 50).subtasks) for seed in range(200)}
    assert min(sizes) < 5
    assert max(sizes) > 45
