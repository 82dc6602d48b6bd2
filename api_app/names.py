"""Run ids as they stand in paths: taken in either case, and from there on in one."""

from typing import Annotated

from pydantic import AfterValidator

from posthouse.ids import is_ulid


def canonical(text: str) -> str:
    """A ULID in upper case; anything else as it is."""
    upper = text.upper() if text.isascii() else text
    return upper if is_ulid(upper) else text


RunId = Annotated[str, AfterValidator(canonical)]
