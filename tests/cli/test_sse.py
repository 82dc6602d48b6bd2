"""Server-sent events: the same events, however the bytes are cut."""

import pytest

from posthouse.cli.sse import EventParser, ServerSent

STREAM = (
    "\ufeff: keep-alive\r\n\r\n"
    'id: 1\r\nevent: run.created\r\ndata: {"a":1}\r\n\r\n'
    "retry: 250\rdata:two\rdata: lines\u2028and é\r\r"
    "id: 2\nevent\ndata\n\n"
    "event: nothing\n\n"
    "retry: soon\nid: 3\0\ndata: end\n\n"
    "data: never finished\n"
).encode()

EVENTS = [
    ServerSent("run.created", '{"a":1}', "1"),
    ServerSent("message", "two\nlines\u2028and é", "1"),
    ServerSent("message", "", "2"),
    ServerSent("message", "end", "2"),
]


def parsed(*pieces: bytes) -> list[ServerSent]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def test_whole() -> None:
    assert parsed(STREAM) == EVENTS


def test_byte_by_byte() -> None:
    assert parsed(*(bytes([byte]) for byte in STREAM)) == EVENTS


@pytest.mark.parametrize("cut", range(1, len(STREAM)))
def test_cut_anywhere(cut: int) -> None:
    assert parsed(STREAM[:cut], b"", STREAM[cut:]) == EVENTS


def test_the_pause_before_a_reconnect_is_kept() -> None:
    parser = EventParser()
    list(parser.feed(STREAM))
    assert parser.retry_ms == 250
