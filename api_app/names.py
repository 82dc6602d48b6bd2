"""Ids as they stand in paths: taken in either case, and from there on in one."""

import re
from typing import Annotated

from pydantic import AfterValidator

from posthouse.ids import is_ulid

_INPUT_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}-[0-9a-f]{16}")


def canonical(text: str) -> str:
    """A ULID in upper case; anything else as it is."""
    upper = text.upper() if text.isascii() else text
    return upper if is_ulid(upper) else text


def canonical_input(text: str) -> str:
    """The id of an input request with its run's id in upper case; anything else as it is."""
    run_id, dash, part = text.partition("-")
    return f"{canonical(run_id)}{dash}{part.lower()}" if dash else text


def is_input_id(text: str) -> bool:
    """Whether the text is the id of an input request."""
    return _INPUT_ID.fullmatch(text) is not None


RunId = Annotated[str, AfterValidator(canonical)]
ScheduleId = Annotated[str, AfterValidator(canonical)]
InputId = Annotated[str, AfterValidator(canonical_input)]
