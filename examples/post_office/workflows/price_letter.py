"""What a letter costs: one question to the clerk."""

from typing import Annotated

from pydantic import BaseModel, StringConstraints

from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Incomplete, workflow


class Letter(BaseModel):
    """A letter, in the words of whoever sends it."""

    letter: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class Price(BaseModel):
    """What the clerk said."""

    answer: str


@workflow("price_letter", version=1)
async def price_letter(ctx: RunContext, request: Letter) -> Price | Incomplete[Price]:
    """Asks the clerk what it costs to send a letter."""
    answer = await ctx.agent("clerk", f"What does this letter cost: {request.letter}")
    price = Price(answer=answer.text)
    if answer.stopped is None:
        return price
    return Incomplete(price, answer.stopped, "The clerk was stopped before the end.")
