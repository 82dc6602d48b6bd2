"""The lock of a data folder: one stack at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from posthouse.errors import ConfigurationError


@contextlib.contextmanager
def data_folder(path: Path) -> Iterator[int]:
    """Makes the folder and locks it; gives the lock's file descriptor. Raises ConfigurationError.

    The lock holds as long as the descriptor is open in any process, also one that inherited it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigurationError(f"POSTHOUSE_DATA_DIR: cannot use {path}: {reason}") from None
    try:
        _take(lock, path)
        yield lock
    finally:
        os.close(lock)


def _take(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
        raise ConfigurationError(
            f"{path} is in use by another posthouse (process {owner}); "
            "stop that one, or set POSTHOUSE_DATA_DIR to another folder"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
