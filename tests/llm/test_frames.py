from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.llm.frames import EventReader, EventTooLong

STREAM = b': hello\r\n\r\nevent: x\ndata: {"a":\ndata: 1}\nid: 5\n\ndata:two\r\n\r\n\n\ndata\n\ndata: cut'
EVENTS = [b'{"a":\n1}', b"two"]


def test_the_data_of_each_event_is_read() -> None:
    assert EventReader().feed(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_it_does_not_matter_where_the_network_cuts(cuts: list[int]) -> None:
    reader = EventReader()
    places = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[a:b] for a, b in pairwise(places)]
    assert [event for part in parts for event in reader.feed(part)] == EVENTS


@pytest.mark.parametrize("part", [b"data: 1234\n", b"data:", b"x" * 30])
def test_an_event_that_does_not_end_is_too_long(part: bytes) -> None:
    def read() -> None:
        reader = EventReader(most_bytes=100)
        for _ in range(100):
            reader.feed(part)

    with pytest.raises(EventTooLong) as caught:
        read()
    assert 100 < caught.value.size <= 130


def test_many_small_events_are_not() -> None:
    reader = EventReader(most_bytes=100)
    assert len(reader.feed(b"data: 1\n\n" * 1000)) == 1000
    assert reader.feed(b": nothing\n" * 1000) == []
