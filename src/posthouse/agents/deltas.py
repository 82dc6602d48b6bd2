"""Pieces of a model's text, put together so that readers get few messages instead of many."""

from collections.abc import Callable

from posthouse.events.types import MessageDelta

EVERY_SECONDS = 0.03
MOST_CHARACTERS = 400


class DeltaBatcher:
    """Sends text on at most every 30 ms, or when 400 characters wait; `flush` sends the rest."""

    def __init__(self, send: Callable[[MessageDelta], None], now: Callable[[], float]) -> None:
        self._send = send
        self._now = now
        self._pieces: list[str] = []
        self._waiting: list[str] = []
        self._characters = 0
        self._offset = 0
        self._sent_at = now()

    @property
    def text(self) -> str:
        """All the text since the beginning or the last restart, sent or not."""
        return "".join(self._pieces)

    def add(self, piece: str) -> None:
        """Takes a piece of text, and sends what waits when it is time."""
        self._pieces.append(piece)
        self._waiting.append(piece)
        self._characters += len(piece)
        due = self._now() - self._sent_at >= EVERY_SECONDS
        if due or self._characters >= MOST_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Sends what waits."""
        if not self._characters:
            return
        self._send(MessageDelta(offset=self._offset, text="".join(self._waiting)))
        self._offset += self._characters
        self._waiting.clear()
        self._characters = 0
        self._sent_at = self._now()

    def restart(self) -> bool:
        """Forgets all the text, as it comes anew; whether any of it had been sent."""
        sent = self._offset > 0
        self._pieces.clear()
        self._waiting.clear()
        self._characters = self._offset = 0
        return sent
