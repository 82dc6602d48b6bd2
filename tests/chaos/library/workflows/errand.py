"""The workflow `errand`: legs of recorded steps, branches, naps, events and one agent; its output is a checksum."""

import hashlib
import os
from functools import partial

from pydantic import BaseModel, ConfigDict, Field

from posthouse.events.types import SourceFound
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow
from tests.chaos.wire import post


class Errand(BaseModel):
    """How long the errand is; `pace_ms` is what each step takes, `nap_ms` each nap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    legs: int = Field(4, ge=1, le=1000)
    width: int = Field(3, ge=1, le=20)
    pace_ms: int = Field(50, ge=0)
    nap_ms: int = Field(200, ge=0)
    agent: bool = True


class Delivered(BaseModel):
    """The checksum of everything that the steps returned, in order, and how many they were."""

    model_config = ConfigDict(frozen=True)

    checksum: str
    steps: int


@workflow("errand", version=1)
async def errand(ctx: RunContext, request: Errand) -> Delivered:
    """Goes its legs one after another."""
    found: list[str] = []
    for leg in range(request.legs):
        found += await _leg(ctx, request, leg)
    if request.agent:
        answer = await ctx.agent("researcher", f"errand {ctx.run_id} {request.seed}")
        found.append(answer.text)
    return Delivered(checksum=checksum_of(found), steps=len(found))


async def _leg(ctx: RunContext, request: Errand, leg: int) -> list[str]:
    def step(name: str) -> "partial[object]":
        key = f"leg:{leg}/{name}"
        return partial(ctx.step, key, ask, ctx.run_id, key, request.seed, request.pace_ms)

    found = [await step("go")()]
    found += await ctx.gather(*(step(f"branch:{number}")() for number in range(request.width)))
    if request.nap_ms and leg % 2:
        await ctx.sleep(f"leg:{leg}/nap", request.nap_ms / 1000)
    await ctx.emit(f"leg:{leg}/seen", SourceFound(address=f"errand://{leg}", title=found[-1]))
    return [*found, await step("back")()]


async def ask(run_id: str, step: str, seed: int, pace_ms: int) -> str:
    """One call to the tool server, which writes down that it was made and by whom."""
    call = {"run": run_id, "step": step, "seed": seed, "pid": os.getpid(), "pace_ms": pace_ms}
    answer = await post(os.environ["CHAOS_TOOLS_URL"], call | {"key": f"{run_id}/{step}"})
    return str(answer["value"])


def checksum_of(found: list[str]) -> str:
    """What the output says of everything that was found."""
    return hashlib.sha256("\n".join(found).encode()).hexdigest()
