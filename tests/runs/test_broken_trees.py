"""A call that breaks amid what ends, wakes or retries a tree, and is made once more: all is as it was to be."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from posthouse.budget.model import Budget, Reservation
from posthouse.control.doctor import Kind
from posthouse.errors import NotFound
from posthouse.runs.ownership import Claimed
from posthouse.storage import keys
from posthouse.storage.scripts import Script
from tests.chaos.grove import ASKED, DONE, Grove, child_of

EVERY = 5


class Plot(Grove):
    """A root that waits for a child, which reserves and asks, and has a child of its own that has failed."""

    async def grow(self) -> None:
        self.root_claim = await self.root(budget=tuple(Budget(tokens=1000).rows()))
        self.top = self.root_claim.run_id
        self.child = await self.spawn(self.root_claim)
        await self.park(self.root_claim, child_of(self.child))
        self.owner: Claimed = await self.claim(self.child)
        self.grandchild = await self.spawn(self.owner)
        await self.ask(self.owner)
        wanted = Reservation("paid", input_tokens=10, most=40, least=1, model_calls=1)
        await self.journal.reserve(self.owner, 0, wanted)

    async def broken(
        self, script: Script, number: int, call: Callable[[], Awaitable[None]]
    ) -> bool:
        """Whether the planted failure was met; the call is made again then."""
        self.scripts.next = (script, number)
        try:
            await call()
        except (ResponseError, AssertionError, NotFound):
            with suppress(NotFound):
                await call()
            return True
        return False


async def expired(plot: Plot) -> None:
    """A question that nobody answers in time wakes its run, and is said to have expired once."""
    await plot.park(plot.owner, ASKED)
    await plot.time_is_over(plot.child, "q")


async def check_expired(plot: Plot) -> None:
    assert (await plot.kinds(plot.child))["input.expired"] == 1
    assert (await plot.kinds(plot.top))["input.expired"] == 1
    assert (await plot.outcome(plot.child, "q"))["timed_out"]
    assert await plot.queued(plot.child)
    assert await plot.field(plot.top, "asking") == "0"


async def nothing(plot: Plot) -> None:
    """As it is."""


async def check_cancelled(plot: Plot) -> None:
    for run_id in (plot.top, plot.child, plot.grandchild):
        assert await plot.field(run_id, "status") == "cancelled"
    kinds = await plot.kinds(plot.top)
    assert (kinds["run.cancelled"], kinds["subtask.cancelled"]) == (1, 2)
    assert await plot.inputs.inbox("default") == []
    budget = await plot.redis.hgetall(keys.budget(plot.top))
    assert int(budget[b"reserved_tokens"]) == 0
    assert await plot.redis.zcard(keys.QUEUE) == 0


async def cancelled(plot: Plot) -> None:
    await plot.transitions.cancel(plot.top, "default")


async def check_retried(plot: Plot) -> None:
    assert await plot.redis.hget(keys.budget(plot.top), "limit_tokens") == b"1000000"
    for run_id in (plot.grandchild, plot.child, plot.top):
        await plot.finish(run_id, DONE)
        assert (await plot.kinds(run_id))["run.retried"] == 1
    assert await plot.redis.zcard(keys.QUEUE) == 0


async def check_deleted(plot: Plot) -> None:
    left = {key.decode() for key in await plot.redis.keys("*")}
    kept = ("queue:", "claims:", "sweep", "workers", "struck")
    assert [name for name in left if not name.startswith(kept)] == []


Scene = tuple[Script, Callable[[Plot], Awaitable[None]], Callable[[Plot], Awaitable[None]]]
SCENES: list[Scene] = [
    (Script.SWEEP, expired, check_expired),
    (Script.CANCEL, nothing, check_cancelled),
    (Script.RETRY, cancelled, check_retried),
    (Script.DELETE, cancelled, check_deleted),
]


async def deed(plot: Plot, script: Script) -> None:
    match script:
        case Script.SWEEP:
            await plot.look(plot.child)
        case Script.CANCEL:
            await plot.transitions.cancel(plot.top, "default")
        case Script.RETRY:
            limits = [("limit_tokens", 10**6)]
            await plot.retry(plot.top, [], plot.child, plot.grandchild, limits=limits)
        case _:
            await plot.transitions.delete(plot.top, "default")


@pytest.mark.parametrize(("script", "before", "after"), SCENES)
async def test_a_call_that_breaks_is_made_again(
    script: Script,
    before: Callable[[Plot], Awaitable[None]],
    after: Callable[[Plot], Awaitable[None]],
    redis: Redis,
) -> None:
    for number in range(1, 400, EVERY):
        await redis.flushall()
        plot = Plot(redis)
        await plot.grow()
        await before(plot)
        if not await plot.broken(script, number, lambda one=plot: deed(one, script)):
            assert number > 20
            return
        for run_id in (plot.top, plot.child, plot.grandchild):
            if await redis.zscore(keys.DUE, run_id) is not None:
                await plot.look(run_id)
        try:
            await after(plot)
            # A list may name a run under a former status too; whoever reads it looks at the run itself.
            await plot.sound(Kind.STALE_INDEX)
        except AssertionError as error:
            error.add_note(f"{script}, call {number}")
            raise
    pytest.fail("more calls than were tried")
