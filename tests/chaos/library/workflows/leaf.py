"""The workflow `leaf`: one call of the tool server; what it says rests on all that it was given."""

import hashlib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow
from tests.chaos.library.workflows.errand import ask
from tests.chaos.library.workflows.graph import Leaf


class Said(BaseModel):
    """Its text."""

    model_config = ConfigDict(frozen=True)

    text: str


@workflow("leaf", version=1)
async def leaf(ctx: RunContext, request: Leaf) -> Said:
    """Asks once and answers."""
    value = await ctx.step("ask", ask, ctx.run_id, request.name, request.seed, request.pace_ms)
    return Said(text=said_by(value, request.given))


def said_by(value: str, given: Iterable[str]) -> str:
    """A hash of the tool server's answer and of what was given."""
    return hashlib.sha256("\n".join([value, *sorted(given)]).encode()).hexdigest()[:16]
