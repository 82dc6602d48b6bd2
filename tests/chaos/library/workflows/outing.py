"""The workflow `outing`: children, then a question, then an agent whose budget is too small, one after another."""

from dataclasses import asdict
from functools import partial

from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow
from tests.chaos import households
from tests.chaos.library.workflows.errand import Delivered, Errand, ask, checksum_of
from tests.chaos.library.workflows.household import Household


@workflow("outing", version=1)
async def outing(ctx: RunContext, request: Household) -> Delivered:
    """Waits for its children first, then for an answer, then for its agent; so each of its waits is alone."""

    def step(key: str) -> "partial[object]":
        return partial(ctx.step, key, ask, ctx.run_id, key, request.seed, request.pace_ms)

    found = [str(await step("knock")())]
    children = []
    for number, room in enumerate(households.Outing(**request.model_dump()).children):
        children.append(await ctx.spawn(f"room:{number}", "errand", Errand(**asdict(room))))
    ends = await ctx.gather(*(ctx.join(child) for child in children))
    found += [str(end.output["checksum"]) for end in ends]
    found.append(str((await ctx.ask("way", households.question_of(request.seed))).value))
    answer = await ctx.agent("researcher", f"errand {ctx.run_id} {request.seed}")
    found += [answer.text, str(await step("lock")())]
    return Delivered(checksum=checksum_of(found), steps=len(found))
