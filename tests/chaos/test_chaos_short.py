"""The storm of `make chaos` in its short form, and some of the crash points."""

from pathlib import Path

import pytest

from tests.chaos.boundaries import ERRAND, ORDERS, Point, boundaries, error_points, named_points
from tests.chaos.recorders import Order
from tests.chaos.report import Report
from tests.chaos.storm import Storm, storm

pytestmark = pytest.mark.timeout(240)

BLOWS = (
    "worker killed",
    "worker frozen past its lease",
    "worker deployed",
    "Redis killed, AOF always",
    "Redis killed, AOF everysec",
    "connections reset",
    "connections silent",
    "replies cut",
    "duplicate deliveries",
    "API killed",
)


def passed(report: Report) -> None:
    print(f"\n{report.table()}")
    assert report.good, report.table()


async def test_a_short_storm(tmp_path: Path, long: bool) -> None:
    order = Order(0, legs=4, pace_ms=120, nap_ms=300)
    assert order.steps >= 20
    wanted = Storm(
        seed=4,
        seconds=20 if long else 8,
        runs=20 if long else 12,
        faults=8 if long else 6,
        clients=12 if long else 8,
        order=order,
        pauses=(0.1, 0.5),
        nemeses=BLOWS,
    )
    passed(await storm(wanted, tmp_path))


async def test_the_first_call_of_every_script_is_a_crash_point(tmp_path: Path, long: bool) -> None:
    # Four points a script: each third of them takes every script, both moments and both ways.
    step = 1 if long else 3

    def first(calls: dict[str, int]) -> list[Point]:
        return [point for point in named_points(calls) if point.trap.call == 1][::step]

    # A tree of runs needs an API for each point that is taken at the same time.
    orders, names, at_once = (ORDERS, 9 + 15, 4) if long else ((ERRAND,), 9, 8)
    report = await boundaries(tmp_path, first, orders=orders, at_once=at_once)
    assert len(report.faults) == names * 4 // step
    passed(report)


async def test_a_call_in_six_fails_once(tmp_path: Path, long: bool) -> None:
    step = 1 if long else 6
    report = await boundaries(
        tmp_path, lambda calls: error_points(calls)[::step], orders=[ERRAND], at_once=8
    )
    assert report.faults
    passed(report)
