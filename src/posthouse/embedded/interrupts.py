"""Signals that end a stack: the first asks, the next insists."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """The first signal cancels the task that is inside `listening`; each later one calls `kill`."""

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill = kill
        self._task: asyncio.Task[object] | None = None
        self.received: signal.Signals | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals come here."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
                if self.received is not None:
                    # The process is about to end; one more must not change how.
                    signal.signal(number, signal.SIG_IGN)

    def _on(self, number: signal.Signals) -> None:
        if self.received is not None:
            self._kill()
        elif self._task is not None:
            self.received = number
            self._task.cancel()
