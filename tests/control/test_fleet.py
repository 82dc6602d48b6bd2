"""The fleet as it is read from Redis."""

from redis.asyncio import Redis

from posthouse.control.fleet import BAND, Fleet
from posthouse.events.types import Draft, RunCreated
from posthouse.ids import new_run_id
from posthouse.runs.transitions import Acceptance, Transitions
from posthouse.storage import keys


def acceptance(workflow: str = "echo") -> Acceptance:
    created = Draft(event=RunCreated(workflow=workflow, version=1))
    return Acceptance(new_run_id(), "default", workflow, 1, "{}", "{}", created, 60_000)


async def test_what_waits_is_told_apart(redis: Redis) -> None:
    transitions = Transitions(redis)
    for _ in range(3):
        await transitions.accept(acceptance())
    for name in ("other", "another"):
        await transitions.accept(acceptance(name))
    [run, *_] = await transitions.claim("w", "c", 60_000, 1, [("echo", 1)])
    await transitions.release(run, run.seq)
    state = await Fleet(redis).queue()
    assert (state.new, state.continuing, state.held) == (4, 1, 0)

    assert len(await transitions.claim("w", "d", 60_000, 10, [("echo", 1)])) == 3
    state = await Fleet(redis).queue()
    assert (state.new, state.continuing, state.held, state.first_waited_ms) == (0, 0, 2, 0)
    assert state.taken_per_second > 0


async def test_a_queue_entry_without_its_run_hurts_nobody(redis: Redis) -> None:
    await redis.zadd(keys.QUEUE, {"nonsense": 5 * BAND})
    state = await Fleet(redis).queue()
    assert (state.new, state.first_waited_ms) == (1, 0)


async def test_a_worker_of_another_version_is_shown_as_far_as_it_is_known(redis: Redis) -> None:
    seconds, _ = await redis.time()
    await redis.zadd(keys.WORKERS, {"b": seconds * 1000, "a": seconds * 1000, "old": 1})
    await redis.hset(keys.worker("a"), mapping={"host": "4711", "slots": "many", "new": "x"})
    a, b = await Fleet(redis).workers()
    assert (a.worker_id, a.alive, a.host, a.slots) == ("a", True, "4711", None)
    assert (b.worker_id, b.alive, b.host, b.workflows) == ("b", False, None, ())
    assert b.seen_at == seconds * 1000
