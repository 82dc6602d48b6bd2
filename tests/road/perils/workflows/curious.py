"""The workflow `curious`: a step, a question to a person, a step."""

import os

from pydantic import BaseModel, Field

from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow


class Riddle(BaseModel):
    """The file in which it notes its steps."""

    note: str


class Solution(BaseModel):
    """What a person has to say."""

    word: str = Field(pattern="^[a-z]+$")


@workflow("curious", version=1)
async def curious(ctx: RunContext, request: Riddle) -> Solution:
    """Asks a person for a word."""
    await ctx.step("before", write, request.note, "before")
    answer = await ctx.ask("word", "Which word is it?", form=Solution)
    solution = Solution.model_validate(answer.value)
    await ctx.step("after", write, request.note, f"after {solution.word}")
    return solution


async def write(note: str, line: str) -> None:
    """Notes the step and the process that did it."""
    with open(note, "a") as lines:  # noqa: ASYNC230
        lines.write(f"{line} {os.getpid()}\n")
