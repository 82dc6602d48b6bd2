"""The workflow `household`: child runs in its rooms, one of them perhaps a household too, and a question meanwhile."""

from dataclasses import asdict
from functools import partial

from pydantic import BaseModel, ConfigDict, Field

from posthouse.inputs.model import Answer
from posthouse.journal.model import ChildEnd
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow
from tests.chaos import households
from tests.chaos.library.workflows.errand import Delivered, Errand, ask, checksum_of


class Household(BaseModel):
    """How large it is; `pace_ms` is what each step of it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    rooms: int = Field(3, ge=1, le=9)
    pace_ms: int = Field(50, ge=0)
    asks: bool = True
    deep: bool = True


@workflow("household", version=1)
async def household(ctx: RunContext, request: Household) -> Delivered:
    """Knocks, sends somebody into every room, asks for the way, locks up."""

    def step(key: str) -> "partial[object]":
        return partial(ctx.step, key, ask, ctx.run_id, key, request.seed, request.pace_ms)

    found = [str(await step("knock")())]
    children = []
    for number, room in enumerate(households.Household(**request.model_dump()).children):
        given = (Household if room.workflow == "household" else Errand)(**asdict(room))
        children.append(await ctx.spawn(f"room:{number}", room.workflow, given))
    waits = [ctx.join(child) for child in children]
    asked = [ctx.ask("way", households.question_of(request.seed))] if request.asks else []
    for end in await ctx.gather(*waits, *asked):
        match end:
            case ChildEnd(output={"checksum": checksum}):
                found.append(str(checksum))
            case Answer(value=value):
                found.append(str(value))
            case _:
                found.append(end.model_dump_json())
    found.append(str(await step("lock")()))
    return Delivered(checksum=checksum_of(found), steps=len(found))
