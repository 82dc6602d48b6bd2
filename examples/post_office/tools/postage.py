"""The tool `postage`: what it costs to send a letter."""

from typing import Annotated, Literal

from pydantic import Field

from posthouse.errors import ToolFailed
from posthouse.tools.define import tool

# Up to so many grams, so many cents.
RATES = {
    "home": ((20, 95), (50, 110), (500, 180), (1000, 290)),
    "abroad": ((20, 125), (50, 180), (500, 400), (1000, 650)),
}


# The rates are ours, so the model may take the answer at its word.
@tool(trusted=True, timeout_seconds=5.0)
async def postage(
    destination: Literal["home", "abroad"], grams: Annotated[int, Field(ge=1)]
) -> dict[str, int | str]:
    """Look up what a letter costs, in cents.

    Args:
        destination: Whether the letter stays in the country.
        grams: The letter's weight.
    """
    for most, cents in RATES[destination]:
        if grams <= most:
            return {"destination": destination, "grams": grams, "cents": cents}
    raise ToolFailed("a letter may weigh 1,000 grams; this is a parcel", kind="too_heavy")
