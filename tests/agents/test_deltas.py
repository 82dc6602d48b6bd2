from posthouse.agents.deltas import MOST_CHARACTERS, DeltaBatcher
from posthouse.events.types import MessageDelta


class Bench:
    def __init__(self) -> None:
        self.time = 0.0
        self.sent: list[MessageDelta] = []
        self.batcher = DeltaBatcher(self.sent.append, lambda: self.time)

    def texts(self) -> list[str]:
        return [delta.text for delta in self.sent]


def test_pieces_wait_for_thirty_milliseconds() -> None:
    bench = Bench()
    bench.batcher.add("a")
    bench.batcher.add("b")
    assert bench.sent == []
    bench.time = 0.031
    bench.batcher.add("c")
    bench.batcher.add("d")
    bench.batcher.flush()
    bench.batcher.flush()
    assert bench.texts() == ["abc", "d"]
    assert [delta.offset for delta in bench.sent] == [0, 3]


def test_much_text_does_not_wait() -> None:
    bench = Bench()
    bench.batcher.add("x" * MOST_CHARACTERS)
    assert len(bench.sent) == 1


def test_a_restart_begins_at_zero_and_says_whether_readers_saw_anything() -> None:
    bench = Bench()
    bench.batcher.add("unsent")
    assert not bench.batcher.restart()
    bench.batcher.add("sent")
    bench.batcher.flush()
    assert bench.batcher.restart()
    bench.batcher.add("new")
    bench.batcher.flush()
    assert bench.batcher.text == "new"
    assert (bench.sent[-1].offset, bench.sent[-1].text) == (0, "new")
