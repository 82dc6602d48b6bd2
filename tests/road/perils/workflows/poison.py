"""The workflow `poison`: whatever process does its second step is gone."""

import os
import signal
import time
from typing import Literal

from pydantic import BaseModel

from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow


class Dose(BaseModel):
    """How it ends its process, and the file in which it notes which one; `after` is how many steps are harmless."""

    note: str
    how: Literal["kill", "exit", "hang"] = "kill"
    after: int = 1


class Survived(BaseModel):
    """What nobody ever sees."""

    pid: int


@workflow("poison", version=1)
async def poison(ctx: RunContext, request: Dose) -> Survived:
    """Does harmless steps and then the other one."""
    for number in range(request.after):
        await ctx.step(f"harmless:{number}", harmless)
    return Survived(pid=await ctx.step("deadly", deadly, request.note, request.how))


async def harmless() -> int:
    """Does nothing."""
    return os.getpid()


async def deadly(note: str, how: str) -> int:
    """Writes the id of this process into the note, and ends or blocks it."""
    with open(note, "a") as lines:  # noqa: ASYNC230
        lines.write(f"{os.getpid()}\n")
    match how:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(0)
        case _:
            time.sleep(3600)  # noqa: ASYNC251
    return os.getpid()
