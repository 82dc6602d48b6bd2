"""Server-sent events as the HTML standard reads them, from bytes in any pieces."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerSent:
    """One event; `id` is the last one that the stream named, empty when it named none."""

    type: str
    data: str
    id: str


class EventParser:
    """Feed it what arrives; it gives the events that are whole.

    `retry_ms` is the pause before a reconnect that the server asked for, if it did.
    """

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self._rest = b""
        self._after_cr = False
        self._begun = False
        self._id = ""
        self._type = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerSent]:
        """The events that this piece completes."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        *lines, self._rest = _LINE_END.split(self._rest + chunk)
        for line in lines:
            if not self._begun:
                line = line.removeprefix(_BOM)
                self._begun = True
            if line:
                self._field(line.decode(errors="replace"))
            elif event := self._dispatch():
                yield event

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._type = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)

    def _dispatch(self) -> ServerSent | None:
        lines, kind = self._data, self._type or "message"
        self._data, self._type = [], ""
        return ServerSent(kind, "\n".join(lines), self._id) if lines else None
