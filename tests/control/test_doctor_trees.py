"""What gets lost of a tree of runs, its questions, its budget and of schedules is found and mended."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from posthouse.budget.model import Budget, Reservation
from posthouse.control.doctor import Doctor, Kind
from posthouse.runs.ownership import Claimed
from posthouse.storage import keys
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


@pytest.fixture
def doctor(redis: Redis) -> Doctor:
    return Doctor(redis, grace_seconds=0)


Found = list[tuple[Kind, str, str]]
Damage = Callable[[Yard], Awaitable[Found]]


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
    yard: Yard, doctor: Doctor, damage: Damage
) -> None:
    before = await everything(yard.redis)
    expected = set(await damage(yard))
    findings = await doctor.examine()
    assert {(one.kind, one.key, one.member) for one in findings} == expected
    assert all(one.deed for one in await doctor.mend(findings))
    assert await doctor.examine() == []
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


async def test_children_that_outlive_their_root(yard: Yard, doctor: Doctor) -> None:
    """One whose root has ended is cancelled, one whose root is gone goes with all that is its own."""
    await yard.redis.hset(keys.run(yard.asker), "root", yard.over)
    await yard.redis.hset(keys.run(yard.payer), "root", GONE)
    for _ in range(5):
        await doctor.mend(await doctor.examine())
    assert await yard.field(yard.asker, "status") == "cancelled"
    assert await yard.redis.keys(f"run:{yard.payer}*") == []
    assert not [one for one in await doctor.examine() if one.kind is Kind.STRAY]
