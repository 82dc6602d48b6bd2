"""Ids: ULIDs for what people see, random hex for what only machines compare."""

import re
import secrets

from ulid import ULID

_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def new_run_id() -> str:
    """A new ULID (26 characters, sorts by creation time)."""
    return str(ULID())


def new_schedule_id() -> str:
    """A new ULID, as a run's."""
    return str(ULID())


def is_ulid(text: str) -> bool:
    """Whether the text is a ULID in its canonical, upper-case form."""
    return _ULID.fullmatch(text) is not None


def new_token(size: int = 8) -> str:
    """Random hex of `size` bytes, for claims, workers and requests."""
    return secrets.token_hex(size)
