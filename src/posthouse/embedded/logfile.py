"""The log of a stack: every line of every process, with the process' name before it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Self

ROTATE_BYTES = 20_000_000
NAME_WIDTH = 9

Echo = Callable[[str, str], None]


class LogFile:
    """Appends lines at once; past 20 MB the file becomes `<name>.1` and a new one begins."""

    def __init__(self, path: Path, echo: Echo | None = None) -> None:
        self.path = path
        self._echo = echo
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size

    def write(self, name: str, line: bytes) -> None:
        """One line of the process `name`, without its line end."""
        whole = f"{name:<{NAME_WIDTH}}| ".encode() + line + b"\n"
        # A full disk costs lines of the log; it must not stop those who write them.
        with contextlib.suppress(OSError):
            if self._size + len(whole) > ROTATE_BYTES:
                self._rotate()
            self._size += self._file.write(whole)
        if self._echo is not None:
            self._echo(name, line.decode(errors="replace"))

    def _rotate(self) -> None:
        self._file.close()
        self.path.replace(self.path.with_name(self.path.name + ".1"))
        self._file = self.path.open("ab", buffering=0)
        self._size = 0

    def close(self) -> None:
        """The file is closed; write no more."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
