"""That a yes which is sent again is no yes to the next question."""

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse.control.inputs import Replies, Reply
from posthouse.errors import InvalidAnswer
from posthouse.inputs.model import Decision, Kind, Request
from posthouse.inputs.store import Inputs
from posthouse.runs.model import Status
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow


class Given(BaseModel):
    pass


class Got(BaseModel):
    approved: bool


@pytest.mark.parametrize("kind", [Kind.APPROVAL, Kind.DOUBT, Kind.BUDGET])
async def test_what_is_done_or_paid_for_needs_to_have_been_seen(
    redis: Redis, valkey_url: str, kind: Kind
) -> None:
    async def body(ctx: RunContext, given: Given) -> Got:
        decisions = (Decision.APPROVE, Decision.REJECT)
        request = Request(kind=kind, question="Really?", decisions=decisions, digest="seen")
        return Got(approved=(await ctx.request("ask", request)).approved)

    async with LocalFleet(valkey_url, [Workflow("flow", 1, "", Given, Got, body)]) as fleet:
        fleet.worker()
        replies = Replies(Inputs(redis))
        run_id = await fleet.submit("flow", "{}")
        record = await fleet.until(run_id, Status.AWAITING_INPUT)
        yes = Reply(decision=Decision.APPROVE)
        with pytest.raises(InvalidAnswer, match="digest: say what was seen"):
            await replies.answer_run(record, "default", yes)
        seen = Reply(decision=Decision.APPROVE, digest="seen")
        await replies.answer_run(record, "default", seen)
        assert (await fleet.ended(run_id)).output == {"approved": True}
