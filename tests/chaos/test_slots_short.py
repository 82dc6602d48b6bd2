"""The short form of `python -m tests.chaos slots`, and how it measures."""

from pathlib import Path

from tests.chaos.slots import Kept, Load, busy_between, slots


async def test_slots_are_taken_again_while_runs_wait(tmp_path: Path) -> None:
    # Half is far below what any machine does, and far above what is left when a slot waits for a poll.
    load = Load(workers=2, slots=10, runs=200, seconds=0.2, lease=1.5, wanted=0.5)
    report = await slots(tmp_path, 1, load)
    print(f"\n{report.table()}")
    assert report.good, report.table()


def test_only_what_is_between_full_and_empty_counts() -> None:
    kept = [
        Kept(0, 100, 1, "completed"),
        Kept(10, 50, 1, "completed"),
        Kept(60, 200, 1, "completed"),
        Kept(110, 300, 1, "completed"),
    ]
    assert busy_between(kept, 2) == (10, 110, 90 + 40 + 50)
    assert busy_between(kept, 3) == (0, 0, 0)
