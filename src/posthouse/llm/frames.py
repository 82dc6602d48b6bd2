"""Server-sent events out of a response's bytes, in bounded memory and linear time."""

# The longest whole answer in one event, were each of its characters a JSON escape of six bytes.
MOST_EVENT_BYTES = 4 * 1024 * 1024


class EventTooLong(ValueError):
    """One event is longer than any that is wanted; `size` is what had come of it, in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__("an event of the stream is too long")
        self.size = size


class EventReader:
    """Takes bytes as they come and gives the data of each whole event; other fields are skipped.

    Lines end with LF or CRLF. An event that the end cuts is none.
    """

    def __init__(self, most_bytes: int = MOST_EVENT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, part: bytes) -> list[bytes]:
        """The data of the events that this part ends. Raises EventTooLong."""
        events: list[bytes] = []
        first, *others = part.split(b"\n")
        self._line += first
        if others:
            self._take(bytes(self._line), events)
            for line in others[:-1]:
                if line or self._data:
                    self._take(line, events)
            self._line = bytearray(others[-1])
        size = self._held + len(self._line)
        if size > self._most_bytes:
            raise EventTooLong(size)
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        line = line.removesuffix(b"\r")
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._held += len(line)
        elif not line and self._data:
            events.append(b"\n".join(self._data))
            self._data, self._held = [], 0
