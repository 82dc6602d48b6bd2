"""The workflow `innocent` in its second version, with another step first."""

from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow
from tests.road.perils.workflows.innocent import Walked, Way, walk


@workflow("innocent", version=2)
async def innocent(ctx: RunContext, request: Way) -> Walked:
    """Goes its way step by step, with one more first."""
    await ctx.step("first", walk, request.note, -1, 0.0)
    for number, seconds in enumerate(request.seconds):
        if number == request.nap_before:
            await ctx.sleep("nap", request.nap_seconds)
        await ctx.step(f"step:{number}", walk, request.note, number, seconds)
    return Walked(steps=len(request.seconds))
