"""The workflow `patient`: goes on step by step until it is told to stop."""

import asyncio
import itertools
import os
from pathlib import Path

from pydantic import BaseModel

from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow


class Patience(BaseModel):
    """The file in which it notes its steps, the one that tells it to stop, and how long each step takes."""

    note: str
    until: str
    seconds: float = 0.05


class Patient(BaseModel):
    """How many steps it was."""

    steps: int


@workflow("patient", version=1)
async def patient(ctx: RunContext, request: Patience) -> Patient:
    """Goes on until the file is there."""
    for number in itertools.count(1):
        if await ctx.step(f"step:{number}", wait, request.note, request.until, number):
            return Patient(steps=number)
        await asyncio.sleep(request.seconds)
    raise AssertionError


async def wait(note: str, until: str, number: int) -> bool:
    """Notes that the step was done, and whether it was the last."""
    with open(note, "a") as lines:  # noqa: ASYNC230
        lines.write(f"done {number} {os.getpid()}\n")
    return await asyncio.to_thread(Path(until).exists)
