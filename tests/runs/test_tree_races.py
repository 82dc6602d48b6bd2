"""What two do to one tree of runs at the same moment, and what comes in the order that nobody hopes for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from posthouse.errors import Conflict, Gone, NotFound, OwnershipLost
from posthouse.ids import new_run_id
from posthouse.journal.model import Wait
from posthouse.journal.store import Record, Spawn
from posthouse.runs.transitions import Ending
from posthouse.storage import keys
from tests.chaos.grove import ASKED, CREATED, DONE, FAILED, NAP, Grove, child_of, said

TIMES = 25


@pytest.fixture
def grove(redis: Redis) -> Grove:
    return Grove(redis)


async def both_orders(race: Callable[[], Awaitable[str]], *wanted: str) -> None:
    """Each outcome comes; which of the two is first changes from one race to the next."""
    assert {await race() for _ in range(TIMES)} == set(wanted)


def turn(number: list[int], *rivals: Any) -> Any:
    """Both at once; every second time the other one is sent first."""
    number.append(0)
    order = rivals if len(number) % 2 else rivals[::-1]
    return asyncio.gather(*order, return_exceptions=True)


async def test_two_answers_at_once(grove: Grove) -> None:
    number: list[int] = []

    async def race() -> str:
        run = await grove.root()
        asked = await grove.ask(run)
        await grove.park(run, ASKED)
        told = await turn(
            number, *(grove.inputs.answer(asked, "default", said(text)) for text in "ab")
        )
        assert sorted(type(one) for one in told if one is not True) == [Conflict]
        assert (await grove.kinds(run.run_id))["input.answered"] == 1
        assert await grove.queued(run.run_id)
        return str((await grove.outcome(run.run_id, "q"))["value"])

    await both_orders(race, "a", "b")
    await grove.sound()


async def test_an_answer_against_its_expiry(grove: Grove) -> None:
    number: list[int] = []

    async def race() -> str:
        run = await grove.root()
        asked = await grove.ask(run)
        await grove.park(run, ASKED)
        await grove.time_is_over(run.run_id, "q")
        answer = grove.inputs.answer(asked, "default", said("a"))
        told = await turn(number, answer, grove.sweep())
        kinds = await grove.kinds(run.run_id)
        assert kinds["input.answered"] + kinds["input.expired"] == 1
        assert await grove.queued(run.run_id)
        assert await grove.field(run.run_id, "status") == "running"
        timed_out = (await grove.outcome(run.run_id, "q"))["timed_out"]
        assert (True in told) != timed_out
        assert any(type(one) is Gone for one in told) == timed_out
        return "expired" if timed_out else "answered"

    await both_orders(race, "answered", "expired")
    await grove.sound()


async def test_an_answer_against_parking(grove: Grove) -> None:
    number: list[int] = []

    async def race() -> str:
        run = await grove.root()
        asked = await grove.ask(run)
        answer = grove.inputs.answer(asked, "default", said("a"))
        told = await turn(number, grove.park(run, ASKED), answer)
        if None in told:
            assert await grove.queued(run.run_id)
            return "parked first"
        assert 1 in told
        assert (await grove.outcome(run.run_id, "q"))["value"] == "a"
        return "moved"

    await both_orders(race, "parked first", "moved")
    await grove.sound()


@pytest.mark.parametrize("ending", [DONE, FAILED, None])
async def test_the_end_of_a_child_against_its_parent_that_parks(
    grove: Grove, ending: Ending | None
) -> None:
    number: list[int] = []

    async def race() -> str:
        run = await grove.root()
        child = await grove.spawn(run)
        owner = await grove.claim(child)
        end = (
            grove.transitions.finish(owner, 0, ending)
            if ending
            else grove.transitions.cancel(child, "default")
        )
        told = await turn(number, grove.park(run, child_of(child)), end)
        end_of = await grove.outcome(run.run_id, "x/end")
        assert end_of["status"] == (ending.status if ending else "cancelled")
        kinds = sorted(type(one).__name__ for one in told)
        if "int" not in kinds:
            assert kinds == sorted(["NoneType", "NoneType" if ending else "bool"])
            assert await grove.queued(run.run_id)
            return "parked first"
        assert 1 in told
        return "moved"

    await both_orders(race, "parked first", "moved")
    await grove.sound()


async def test_spawning_against_a_cancel(grove: Grove) -> None:
    number: list[int] = []

    async def race() -> str:
        run = await grove.root()
        told = await turn(number, grove.spawn(run), grove.transitions.cancel(run.run_id, "default"))
        tree = await grove.redis.smembers(keys.tree(run.run_id))
        for child in tree:
            assert await grove.field(child.decode(), "status") == "cancelled"
            assert not await grove.queued(child.decode())
        spawned = not any(isinstance(one, OwnershipLost) for one in told)
        assert len(tree) == spawned
        return "spawned" if spawned else "refused"

    await both_orders(race, "spawned", "refused")
    await grove.sound()


async def test_a_spawn_made_again_after_its_child_was_cancelled(grove: Grove) -> None:
    run = await grove.root()
    child = new_run_id()
    text = b'{"result":"%b"}' % child.encode()
    spawn = Spawn("x", "x/end", child, text, "x", "echo", 1, "{}", CREATED)
    await grove.journal.spawn(run, 0, spawn)
    await grove.transitions.cancel(child, "default")
    await grove.journal.spawn(run, 0, spawn)
    assert await grove.field(child, "status") == "cancelled"
    assert await grove.park(run, child_of(child)) == 1
    assert (await grove.outcome(run.run_id, "x/end"))["status"] == "cancelled"
    assert (await grove.kinds(run.run_id))["subtask.cancelled"] == 1
    await grove.sound()


async def test_a_child_that_ends_every_process_wakes_its_parent(grove: Grove) -> None:
    run = await grove.root()
    child = await grove.spawn(run)
    await grove.park(run, child_of(child))
    for _ in range(3):
        await grove.transitions.crash(await grove.claim(child))
    assert await grove.queued(run.run_id)
    end = await grove.outcome(run.run_id, "x/end")
    assert (end["status"], end["error"]["code"]) == ("failed", "poisoned")
    await grove.sound()


async def test_a_deadline_counts_no_time_of_people(grove: Grove) -> None:
    root = await grove.root(timeout_ms=3_600_000)
    child = await grove.spawn(root)
    await grove.park(root, child_of(child))
    owner = await grove.claim(child)
    grandchild = await grove.spawn(owner)
    asker = await grove.claim(grandchild)
    asked = await grove.ask(asker)
    await grove.redis.hset(keys.run(root.run_id), "deadline", 1)
    await grove.look(root.run_id)
    assert await grove.field(root.run_id, "status") == "running"
    await grove.inputs.answer(asked, "default", said("a"))
    await grove.look(root.run_id)
    for run_id, status in (
        (root.run_id, "failed"),
        (child, "cancelled"),
        (grandchild, "cancelled"),
    ):
        assert await grove.field(run_id, "status") == status
    with pytest.raises(OwnershipLost):
        await grove.transitions.finish(asker, 0, DONE)
    await grove.sound()


async def test_a_retry_takes_a_failed_grandchild_along(grove: Grove) -> None:
    root = await grove.root()
    child, other = await grove.spawn(root, "x"), await grove.spawn(root, "y")
    await grove.park(root, child_of(child, "x"), child_of(other, "y"))
    await grove.finish(other)
    owner = await grove.claim(child)
    grandchild = await grove.spawn(owner)
    await grove.park(owner, child_of(grandchild))
    await grove.finish(grandchild, FAILED)
    await grove.finish(child, FAILED)
    await grove.finish(root.run_id, FAILED)
    await grove.retry(root.run_id, [], child, grandchild)
    await grove.sound()
    for run_id in (root.run_id, child):
        run = await grove.claim(run_id)
        assert (
            await grove.park(run, child_of(child if run_id == root.run_id else grandchild)) is None
        )
    for run_id in (grandchild, child, root.run_id):
        await grove.finish(run_id)
    kinds = await grove.kinds(root.run_id)
    assert (kinds["subtask.started"], kinds["subtask.failed"], kinds["subtask.completed"]) == (
        3,
        2,
        3,
    )
    assert (await grove.outcome(child, "x/end"))["status"] == "completed"
    await grove.sound()


async def test_other_work_in_the_place_of_a_child_that_lives_again(grove: Grove) -> None:
    root = await grove.root()
    former = await grove.spawn(root)
    await grove.park(root, child_of(former))
    await grove.transitions.cancel(root.run_id, "default")
    await grove.retry(root.run_id, [], former)
    root = await grove.claim(root.run_id)
    seq = (await grove.journal.load(root.run_id)).outcomes["x"].seq
    child = await grove.spawn(root, former=str(seq))
    assert await grove.field(former, "status") == "cancelled"
    assert await grove.park(root, child_of(child)) is None
    await grove.finish(child)
    assert (await grove.outcome(root.run_id, "x/end"))["run_id"] == child
    await grove.sound()


async def test_the_end_of_a_former_child_is_not_that_of_the_one_in_its_place(grove: Grove) -> None:
    root = await grove.root()
    former = await grove.spawn(root)
    await grove.park(root, child_of(former))
    await grove.finish(former)
    await grove.finish(root.run_id, FAILED)
    await grove.retry(root.run_id, [])
    root = await grove.claim(root.run_id)
    seq = (await grove.journal.load(root.run_id)).outcomes["x"].seq
    child = await grove.spawn(root, former=str(seq))
    await grove.finish(child, FAILED)
    assert (await grove.outcome(root.run_id, "x/end"))["run_id"] == child
    assert len(await grove.redis.hkeys(keys.archive(root.run_id))) == 2
    await grove.sound()


async def test_a_nap_of_another_length_after_a_retry_ends(grove: Grove) -> None:
    root = await grove.root()
    await grove.park(root, NAP)
    await grove.ring(root.run_id, "nap")
    await grove.finish(root.run_id, FAILED)
    await grove.retry(root.run_id, [])
    longer = Wait("nap", "timer", 7_200_000, '{"digest":"longer","result":null}')
    assert await grove.park(await grove.claim(root.run_id), longer) is None
    await grove.ring(root.run_id, "nap")
    assert (await grove.journal.load(root.run_id)).outcomes["nap"].digest == "longer"
    await grove.sound()


async def test_a_question_that_is_asked_again_has_no_answer_yet(grove: Grove) -> None:
    root = await grove.root()
    asked = await grove.ask(root)
    await grove.inputs.answer(asked, "default", said("a"))
    await grove.transitions.finish(root, 0, FAILED)
    await grove.retry(root.run_id, ["q"])
    again = await grove.ask(await grove.claim(root.run_id))
    assert (again.input_id, again.state, again.answer) == (asked.input_id, "open", None)
    assert await grove.inputs.answer(again, "default", said("b"))
    await grove.sound()


async def test_what_was_done_under_a_step_goes_with_it(grove: Grove) -> None:
    root = await grove.root()
    for key in ("a", "a/b", "ab"):
        await grove.journal.commit(root, 0, Record(key, b'{"result":1}'))
    await grove.transitions.finish(root, 0, FAILED)
    await grove.retry(root.run_id, [])
    root = await grove.claim(root.run_id)
    former = str((await grove.journal.load(root.run_id)).outcomes["a"].seq)
    await grove.journal.commit(root, 0, Record("a/c", b'{"result":3}'))
    for _ in range(2):
        await grove.journal.commit(root, 0, Record("a", b'{"result":2}', former=former))
    outcomes = (await grove.journal.load(root.run_id)).outcomes
    assert {key: one.result for key, one in outcomes.items()} == {"a": 2, "a/c": 3, "ab": 1}


async def test_a_child_that_went_with_a_lost_tail_is_made_again(grove: Grove) -> None:
    root = await grove.root()
    child = new_run_id()
    with pytest.raises(OwnershipLost):
        await grove.park(root, child_of(child))
    assert await grove.queued(root.run_id)
    await grove.sound()


async def test_an_endpoint_that_was_waited_for_is_no_wait_of_the_next_time(grove: Grove) -> None:
    root = await grove.root()
    child = await grove.spawn(root)
    await grove.park(root, Wait("turn", "model", 3_600_000), child_of(child))
    await grove.finish(child)
    root = await grove.claim(root.run_id)
    await grove.park(root, NAP)
    assert await grove.redis.hkeys(keys.waits(root.run_id)) == [b"nap"]
    await grove.sound()


async def test_a_tree_goes_when_its_time_is_over(grove: Grove, redis: Redis) -> None:
    root = await grove.root()
    child = await grove.spawn(root)
    owner = await grove.claim(child)
    await grove.ask(owner)
    await grove.journal.commit(owner, 0, Record("a", b'{"blob":"d"}', blob=b"large"))
    await grove.transitions.finish(root, 0, DONE)
    names = [key async for key in redis.scan_iter("run:*")]
    lasting = {keys.run(root.run_id).encode(), keys.run(child).encode()}
    assert {name for name in names if await redis.pttl(name) == -1} == lasting
    await grove.sound()
    await redis.hset(keys.run(root.run_id), "ended_at", 1)
    await grove.look(root.run_id)
    with pytest.raises(NotFound):
        await grove.transitions.delete(root.run_id, "default")
    left = {key.decode() for key in await redis.keys("*")}
    assert not [
        name for name in left if name.startswith(("run:", "index:", "inputs:", "arq:", keys.DUE))
    ]
