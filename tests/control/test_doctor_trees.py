"""What gets lost of a tree of runs, its questions, its budget and of schedules is found and mended."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse.budget.model import Budget, Reservation
from posthouse.control.doctor import Doctor, Kind
from posthouse.control.journal import Journal
from posthouse.control.retrying import Again, Retries
from posthouse.errors import RunCode, StepFailed
from posthouse.runs.model import Status
from posthouse.runs.ownership import Claimed
from posthouse.storage import keys
from posthouse.testing.fleet import LocalFleet
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow
from tests.chaos.grove import ASKED, DONE, FAILED, NAP, Grove, child_of

GONE = "01K00000000000000000000000"
NO_INPUT = f"{GONE}-0123456789abcdef"
INBOX = keys.inbox("default")


class Yard(Grove):
    """A root that waits for three children: one asks, one is at a paid call, one has failed; and an ended tree."""

    async def fill(self) -> None:
        budget = tuple(Budget(tokens=1000).rows())
        root = await self.root(budget=budget, timeout_ms=3_600_000)
        self.asker, self.payer, self.ended = [await self.spawn(root, key) for key in "xyz"]
        children = (("x", self.asker), ("y", self.payer), ("z", self.ended))
        await self.park(root, NAP, *(child_of(child, key) for key, child in children))
        asking = await self.claim(self.asker)
        self.input_id = (await self.ask(asking)).input_id
        await self.park(asking, ASKED)
        self.owner = await self.claim(self.payer)
        wanted = Reservation("paid", input_tokens=10, most=40, least=1, model_calls=1)
        await self.journal.reserve(self.owner, 0, wanted)
        await self.finish(self.ended, FAILED)
        self.top = root.run_id
        await self.again_asleep()
        over = await self.root()
        self.child_of_the_over = await self.spawn(over)
        await self.transitions.finish(over, 0, DONE)
        self.over = over.run_id
        await self.schedule()

    async def again_asleep(self) -> Claimed:
        """The root waits for the two that have no end."""
        root = await self.claim(self.top)
        await self.park(root, NAP, child_of(self.asker, "x"), child_of(self.payer, "y"))
        return root

    async def claim_awake(self) -> Claimed:
        """The root, after a child's end has woken it."""
        await self.transitions.finish(self.owner, 0, DONE)
        return await self.claim(self.top)

    async def schedule(self) -> None:
        self.schedule_id = "01K00000000000000000000009"
        fields: dict[str, str | int] = {"tenant": "default", "next": 10**14}
        await self.redis.hset(keys.schedule(self.schedule_id), mapping=fields)
        await self.redis.zadd(keys.schedules_of("default"), {self.schedule_id: 0})
        await self.redis.zadd(keys.SCHEDULES, {self.schedule_id: 10**14})


@pytest.fixture
async def yard(redis: Redis) -> Yard:
    made = Yard(redis)
    await made.fill()
    return made


Found = list[tuple[Kind, str, str]]
Damage = Callable[[Yard], Awaitable[Found]]
Cured = Callable[[Found], Awaitable[bool]]


async def questions_of_no_run(yard: Yard) -> Found:
    await yard.redis.zadd(INBOX, {NO_INPUT: 0})
    await yard.redis.sadd(keys.open_inputs(yard.top), NO_INPUT)
    await yard.redis.zadd(keys.inbox("other"), {yard.input_id: 0})
    return [
        (Kind.STALE_INPUT, INBOX, NO_INPUT),
        (Kind.STALE_INPUT, keys.open_inputs(yard.top), NO_INPUT),
        (Kind.STALE_INPUT, keys.inbox("other"), yard.input_id),
        (Kind.MISCOUNTED, keys.run(yard.top), "asking"),
    ]


async def a_question_that_nobody_sees(yard: Yard) -> Found:
    await yard.redis.zrem(INBOX, yard.input_id)
    return [(Kind.MISSING_INPUT, INBOX, yard.input_id)]


async def a_question_that_its_root_does_not_know(yard: Yard) -> Found:
    key = keys.open_inputs(yard.top)
    await yard.redis.srem(key, yard.input_id)
    return [
        (Kind.MISSING_INPUT, key, yard.input_id),
        (Kind.MISCOUNTED, keys.run(yard.top), "asking"),
    ]


async def a_miscount_of_questions(yard: Yard) -> Found:
    await yard.redis.hset(keys.run(yard.top), "asking", 3)
    return [(Kind.MISCOUNTED, keys.run(yard.top), "asking")]


async def an_open_question_of_an_ended_run(yard: Yard) -> Found:
    part = yard.input_id.partition("-")[2]
    text = await yard.redis.hget(keys.inputs(yard.asker), part)
    await yard.redis.hset(keys.inputs(yard.over), part, text)
    await yard.redis.expire(keys.inputs(yard.over), 1000)
    return [(Kind.LEFTOVER, keys.inputs(yard.over), part)]


async def a_tree_with_a_stranger_and_without_a_child(yard: Yard) -> Found:
    await yard.redis.sadd(keys.tree(yard.top), GONE)
    await yard.redis.srem(keys.tree(yard.top), yard.ended)
    return [
        (Kind.STALE_TREE, keys.tree(yard.top), GONE),
        (Kind.MISSING_TREE, keys.tree(yard.top), yard.ended),
    ]


async def children_that_no_list_shows(yard: Yard) -> Found:
    lists = [keys.index("default:children"), keys.index("default:children", "failed")]
    for key in lists:
        await yard.redis.zrem(key, yard.ended)
    return [(Kind.MISSING_INDEX, key, yard.ended) for key in lists]


async def children_in_lists_of_others(yard: Yard) -> Found:
    lists = [
        *(keys.index("default"), keys.index("default", "failed")),
        keys.index("default:children", "completed"),
    ]
    for key in lists:
        await yard.redis.zadd(key, {yard.ended: 0})
    return [(Kind.STALE_INDEX, key, yard.ended) for key in lists]


async def reservations_of_nobody(yard: Yard) -> Found:
    key = keys.budget(yard.top)
    fields = [f"reserved:{yard.asker}:a", f"reserved:{GONE}:b"]
    for field in fields:
        await yard.redis.hset(key, field, "7|0|0|0")
        await yard.redis.hincrby(key, "reserved_tokens", 7)
    return [(Kind.LEFTOVER, key, field) for field in fields]


async def a_miscount_of_reservations(yard: Yard) -> Found:
    await yard.redis.hincrby(keys.budget(yard.top), "reserved_tokens", 7)
    return [(Kind.MISCOUNTED, keys.budget(yard.top), "reserved_tokens")]


async def keys_of_a_tree_that_would_end_or_stay(yard: Yard) -> Found:
    ending = [keys.events(yard.ended), keys.budget(yard.top), keys.inputs(yard.asker)]
    for key in ending:
        await yard.redis.expire(key, 1000)
    staying = keys.events(yard.child_of_the_over)
    await yard.redis.persist(staying)
    return [*((Kind.EXPIRING, key, "") for key in ending), (Kind.LASTING, staying, "")]


async def schedules_that_are_nowhere(yard: Yard) -> Found:
    lists = [keys.SCHEDULES, keys.schedules_of("default")]
    for key in lists:
        await yard.redis.zrem(key, yard.schedule_id)
        await yard.redis.zadd(key, {GONE: 10**14})
    return [
        *((Kind.MISSING_SCHEDULE, key, yard.schedule_id) for key in lists),
        *((Kind.STALE_SCHEDULE, key, GONE) for key in lists),
    ]


DAMAGES: list[Damage] = [
    questions_of_no_run,
    a_question_that_nobody_sees,
    a_question_that_its_root_does_not_know,
    a_miscount_of_questions,
    an_open_question_of_an_ended_run,
    a_tree_with_a_stranger_and_without_a_child,
    children_that_no_list_shows,
    children_in_lists_of_others,
    reservations_of_nobody,
    a_miscount_of_reservations,
    keys_of_a_tree_that_would_end_or_stay,
    schedules_that_are_nowhere,
]
CHANGED = (b"seq", b"asked_", b"deadline", b"spent_", b"lost_")


async def everything(redis: Redis) -> dict[str, Any]:
    """All that is in Redis but what a mend must change."""
    read = {
        b"hash": redis.hgetall,
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"stream": redis.xrange,
        b"string": redis.get,
    }
    all_of_it = {}
    for key in sorted(await redis.keys("*")):
        kind = await redis.type(key)
        content = await read[kind](key) if kind in read else None
        if kind == b"hash":
            content = {k: v for k, v in content.items() if not k.startswith(CHANGED)}
        if content:
            all_of_it[key.decode()] = content
    return all_of_it


async def test_a_tree_at_work_is_no_finding(doctor: Doctor, yard: Yard) -> None:
    assert await doctor.examine() == []


@pytest.mark.parametrize("damage", DAMAGES)
async def test_each_kind_is_found_and_mended_and_nothing_else_is_touched(
    yard: Yard, cured: Cured, damage: Damage
) -> None:
    before = await everything(yard.redis)
    assert await cured(await damage(yard))
    after = await everything(yard.redis)
    after.pop(keys.inputs(yard.over), None)
    assert after == before


async def test_an_end_that_a_parent_was_not_told_of(yard: Yard, doctor: Doctor) -> None:
    await yard.redis.hset(keys.waits(yard.top), "z/end", f"0|child|{yard.ended}")
    await yard.redis.hdel(keys.journal(yard.top), "z/end")
    [finding] = await doctor.examine()
    assert (finding.kind, finding.member) == (Kind.MISSED_END, "z/end")
    await doctor.mend([finding])
    assert await yard.queued(yard.top)
    assert (await yard.outcome(yard.top, "z/end"))["status"] == "failed"
    assert await doctor.examine() == []


async def test_a_child_that_is_gone_has_failed(yard: Yard, doctor: Doctor) -> None:
    await yard.redis.delete(keys.run(yard.asker))
    lost = (Kind.LOST_CHILD, keys.waits(yard.top), "x/end")
    findings = await doctor.examine()
    assert lost in [(one.kind, one.key, one.member) for one in findings]
    deeds = {one.finding.kind: one.deed for one in await doctor.mend(findings)}
    assert deeds[Kind.LOST_CHILD] == "ended as failed"

    end = await yard.outcome(yard.top, "x/end")
    assert (end["run_id"], end["status"], end["output"]) == (yard.asker, "failed", None)
    assert end["error"]["code"] == RunCode.LOST
    assert set(await yard.redis.hkeys(keys.waits(yard.top))) == {b"nap", b"y/end"}
    root = await yard.claim(yard.top)
    await doctor.mend(await doctor.examine())
    assert await doctor.examine() == []
    await yard.park(root, NAP, child_of(yard.payer, "y"))
    assert await doctor.examine() == []


async def test_a_child_that_the_journal_does_not_know_either_is_made_again(
    yard: Yard, doctor: Doctor
) -> None:
    await yard.redis.delete(keys.run(yard.asker))
    await yard.redis.hdel(keys.journal(yard.top), "x")
    deeds = [one.deed for one in await doctor.mend(await doctor.examine())]
    assert deeds.count("made again") == 1
    assert await yard.queued(yard.top)
    assert await yard.redis.hexists(keys.journal(yard.top), "x/end") is False


async def test_who_works_finds_out_by_itself_that_a_child_is_gone(
    yard: Yard, doctor: Doctor
) -> None:
    await yard.transitions.release(await yard.claim_awake(), 0)
    await yard.redis.delete(keys.run(yard.asker))
    kinds = {one.kind for one in await doctor.examine()}
    assert Kind.LOST_CHILD not in kinds


async def test_children_that_outlive_their_root(yard: Yard, doctor: Doctor) -> None:
    """One whose root has ended is cancelled, one whose root is gone goes with all that is its own."""
    await yard.redis.hset(keys.run(yard.asker), "root", yard.over)
    await yard.redis.hset(keys.run(yard.payer), "root", GONE)
    for _ in range(5):
        await doctor.mend(await doctor.examine())
    assert await yard.field(yard.asker, "status") == "cancelled"
    assert await yard.redis.keys(f"run:{yard.payer}*") == []
    assert not [one for one in await doctor.examine() if one.kind is Kind.STRAY]


class Given(BaseModel):
    text: str = ""


async def below_of(fleet: LocalFleet, run_id: str) -> str:
    """The one child of the run, once both are parked."""
    async with asyncio.timeout(10), fleet.redis.pubsub() as channel:
        await channel.subscribe(keys.events(run_id))
        while (await fleet.record(run_id)).wait_reason != "children":
            await channel.get_message(timeout=0.05)
        [child] = await fleet.redis.smembers(keys.tree(run_id))
        while (await fleet.record(child.decode())).wait_reason != "timer":
            await channel.get_message(timeout=0.05)
        return str(child.decode())


async def test_a_run_whose_child_is_gone_goes_on_and_a_retry_makes_the_child_anew(
    redis: Redis, valkey_url: str, doctor: Doctor
) -> None:
    seconds = [3600.0]

    async def leaf(ctx: RunContext, given: Given) -> Given:
        await ctx.sleep("nap", seconds[0])
        return Given(text="done")

    async def root(ctx: RunContext, given: Given) -> Given:
        end = await ctx.join(await ctx.spawn("below", "leaf", Given()))
        if end.error is not None:
            raise StepFailed(end.error["message"])
        return Given.model_validate(end.output)

    bodies = {"leaf": leaf, "root": root}
    flows = [Workflow(name, 1, "", Given, Given, body) for name, body in bodies.items()]
    async with LocalFleet(valkey_url, flows) as fleet:
        fleet.worker()
        run_id = await fleet.submit("root", "{}")
        await redis.delete(keys.run(await below_of(fleet, run_id)))
        await doctor.mend(await doctor.examine())
        record = await fleet.ended(run_id)
        assert record.error is not None
        assert record.error.message == "The run that was to give this result is gone."

        seconds[0] = 0.001
        again = await Retries(redis, Journal(redis)).of(run_id, None)
        assert again == Again(("below", "below/end"))
        await fleet.transitions.retry(run_id, "default", record.seq, again.steps, again.children)
        record = await fleet.until(run_id, Status.COMPLETED)
        assert record.output == {"text": "done"}
        assert [one.kind for one in await doctor.examine()] == []
