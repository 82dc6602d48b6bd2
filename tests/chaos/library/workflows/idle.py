"""The workflow `idle`: one step that only waits, so that what is measured is the service and not its work."""

import asyncio

from pydantic import BaseModel, ConfigDict, Field

from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow


class Pause(BaseModel):
    """How long its step takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    milliseconds: int = Field(ge=0)


class Over(BaseModel):
    """How long it took."""

    model_config = ConfigDict(frozen=True)

    milliseconds: int


@workflow("idle", version=1)
async def idle(ctx: RunContext, request: Pause) -> Over:
    """Holds a slot for so long."""
    return Over(milliseconds=await ctx.step("pause", pause, request.milliseconds))


async def pause(milliseconds: int) -> int:
    """Waits."""
    await asyncio.sleep(milliseconds / 1000)
    return milliseconds
