"""The workflow `innocent`: steps of a set length, each of which notes where it was done."""

import asyncio
import os

from pydantic import BaseModel, Field

from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow


class Way(BaseModel):
    """How long each of its steps takes, before which step it naps, and the file in which it notes what it does."""

    note: str
    seconds: list[float] = Field(default=[0.0, 0.0, 2.0, 0.0])
    nap_before: int | None = None
    nap_seconds: float = 0.0


class Walked(BaseModel):
    """How many steps it was."""

    steps: int


@workflow("innocent", version=1)
async def innocent(ctx: RunContext, request: Way) -> Walked:
    """Goes its way step by step."""
    for number, seconds in enumerate(request.seconds):
        if number == request.nap_before:
            await ctx.sleep("nap", request.nap_seconds)
        await ctx.step(f"step:{number}", walk, request.note, number, seconds)
    return Walked(steps=len(request.seconds))


async def walk(note: str, number: int, seconds: float) -> int:
    """Notes that the step began, and where, and later that it ended."""
    write(note, f"began {number} {os.getpid()} {os.getppid()}")
    await asyncio.sleep(seconds)
    write(note, f"ended {number} {os.getpid()} {os.getppid()}")
    return number


def write(note: str, line: str) -> None:
    """Appends one line in one write."""
    with open(note, "a") as lines:
        lines.write(f"{line}\n")
