"""The rate of an endpoint, counted once for the whole fleet: what fits into a minute, what a refusal closes."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from posthouse.errors import ModelUnavailable, RunCode
from posthouse.llm.breaker import Endpoint
from posthouse.llm.limits import Allowance, Told
from posthouse.llm.messages import ModelRequest, Tokens, UserMessage
from posthouse.llm.pace import Lane, Limits, Outcome, Pace, PacePolicy, Permit, Report
from posthouse.llm.rate import FREE_SECONDS, Rate
from posthouse.storage import keys
from posthouse.storage.connect import connect
from posthouse.testing.provider import say

WHERE = Endpoint.at("http://models.test:9/v1")
LANE = Lane(WHERE.digest, "m", Limits(requests_per_minute=5))
FREE = Lane(WHERE.digest, "m")
REQUEST = ModelRequest(model="m", messages=(UserMessage(text="hi"),))
POLICY = PacePolicy()
MINUTE_SLOTS = 21
SLOT_MS = 3000


async def slot_now(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return (seconds * 1000 + micros // 1000) // SLOT_MS


async def time_passes(redis: Redis, digest: str, slots: int) -> None:
    """As when so many slots of a minute had passed: what was counted in them lies so much further back."""
    key = keys.pace(digest)
    stored = await redis.hgetall(key)
    moved = {}
    for name, text in stored.items():
        if name.startswith(b"slot"):
            at, rest = text.split(b" ", 1)
            before = int(at) - slots
            moved[f"slot{before % MINUTE_SLOTS}"] = b"%d %b" % (before, rest)
            await redis.hdel(key, name)
    if moved:
        await redis.hset(key, mapping=moved)
    for name in ("closed_until", "tried", "turn"):
        if until := await redis.hget(key, name):
            await redis.hset(key, name, int(until) - slots * SLOT_MS)


async def test_what_nobody_limits_is_let_through_and_leaves_nothing(redis: Redis) -> None:
    pace = Pace(redis)
    for _ in range(20):
        assert await pace.take(FREE, 1000) == Permit(tokens=1000)
    assert await redis.dbsize() == 0


async def test_a_minute_holds_what_the_operator_says_over_several_workers(redis: Redis) -> None:
    workers = [Pace(redis), Pace(redis)]
    permits = [await workers[n % 2].take(LANE, 10) for n in range(12)]
    assert [p.wait_seconds == 0 for p in permits] == [True] * 5 + [False] * 7
    # Whoever has to wait is told to come back one after another, and at the first moment in which there is room.
    waits = [p.wait_seconds for p in permits[5:]]
    assert 55 < waits[0] <= 60
    assert waits == sorted(waits)
    assert max(waits) <= 60


async def test_other_models_of_the_endpoint_share_its_minute(redis: Redis) -> None:
    pace = Pace(redis)
    for model in "abcde":
        assert not (await pace.take(replace(LANE, model=model), 1)).wait_seconds
    assert (await pace.take(replace(LANE, model="f"), 1)).wait_seconds


async def test_room_comes_back_as_what_was_asked_leaves_the_minute(redis: Redis) -> None:
    pace = Pace(redis)
    for _ in range(3):
        await pace.take(LANE, 1)
    await time_passes(redis, LANE.whole, 10)
    for _ in range(2):
        await pace.take(LANE, 1)
    assert (await pace.take(LANE, 1)).wait_seconds <= (MINUTE_SLOTS - 10) * 3
    await time_passes(redis, LANE.whole, 11)
    await redis.hdel(keys.pace(LANE.digest), "turn")
    taken = [await pace.take(LANE, 1) for _ in range(4)]
    assert [p.wait_seconds == 0 for p in taken] == [True] * 3 + [False]


async def test_tokens_are_counted_as_expected_and_then_as_they_were(redis: Redis) -> None:
    lane, pace = replace(LANE, limits=Limits(tokens_per_minute=1000)), Pace(redis)
    permit = await pace.take(lane, 600)
    assert (await pace.take(lane, 600)).wait_seconds
    await pace.tell(lane, permit, Report(Outcome.ALIVE, tokens=-500))
    assert not (await pace.take(lane, 600)).wait_seconds
    assert (await pace.take(lane, 600)).wait_seconds


async def test_a_request_larger_than_a_minute_goes_alone(redis: Redis) -> None:
    lane, pace = replace(LANE, limits=Limits(tokens_per_minute=100)), Pace(redis)
    assert not (await pace.take(lane, 5000)).wait_seconds
    assert (await pace.take(lane, 1)).wait_seconds


async def test_a_request_that_was_not_made_is_not_counted(redis: Redis) -> None:
    pace = Pace(redis)
    permits = [await pace.take(LANE, 10) for _ in range(5)]
    await pace.tell(LANE, permits[0], Report(Outcome.NONE, -1, -10))
    assert [bool((await pace.take(LANE, 10)).wait_seconds) for _ in range(2)] == [False, True]


async def test_a_limit_that_an_answer_names_holds_from_then_on(redis: Redis) -> None:
    one, other = Pace(redis), Pace(redis)
    told = Told(requests=Allowance(limit=10, left=7))  # three were asked, not all of them by us
    await one.tell(FREE, await one.take(FREE, 1), Report(Outcome.ALIVE, told=told))
    granted = [await other.take(FREE, 1) for _ in range(9)]
    assert [p.wait_seconds == 0 for p in granted] == [True] * 7 + [False] * 2
    assert not (await other.take(replace(FREE, model="another"), 1)).wait_seconds


async def test_a_refusal_closes_for_all_until_the_time_that_it_names(redis: Redis) -> None:
    one, other = Pace(redis), Pace(redis)
    permit = await one.take(FREE, 1)
    closure = await one.tell(FREE, permit, Report(Outcome.LIMITED, retry_after=30.0))
    assert (closure.turned, 29 < closure.wait_seconds <= 30) == (True, True)
    assert 29 < (await other.take(FREE, 1)).wait_seconds <= 30
    again = await other.tell(FREE, permit, Report(Outcome.LIMITED, retry_after=1.0))
    assert (again.turned, again.wait_seconds > 25) == (False, True)
    assert not (await other.take(replace(FREE, model="another"), 1)).wait_seconds


async def test_nobody_is_told_to_wait_longer_than_the_longest(redis: Redis) -> None:
    pace = Pace(redis)
    told = await pace.tell(FREE, Permit(), Report(Outcome.LIMITED, retry_after=7200.0))
    assert told.wait_seconds == (await pace.take(FREE, 1)).wait_seconds == POLICY.longest
    await time_passes(redis, FREE.digest, 100)
    assert (await pace.take(FREE, 1)).wait_seconds == POLICY.longest


async def test_refusals_without_a_time_close_longer_each_time(redis: Redis) -> None:
    pace, waits = Pace(redis), []
    for _ in range(7):
        closure = await pace.tell(FREE, Permit(), Report(Outcome.LIMITED))
        waits.append(round(closure.wait_seconds))
        await time_passes(redis, FREE.digest, 21)
    assert waits == [2, 4, 8, 16, 32, 60, 60]


async def test_after_a_refusal_one_finds_out_and_its_answer_opens(redis: Redis) -> None:
    pace = Pace(redis)
    await pace.tell(FREE, Permit(), Report(Outcome.LIMITED, retry_after=1.0))
    await time_passes(redis, FREE.digest, 1)
    first = await pace.take(FREE, 1)
    assert first == Permit(refused=True, tokens=1)
    assert (await pace.take(FREE, 1)).wait_seconds == POLICY.look
    await time_passes(redis, FREE.digest, 1)
    assert not (await pace.take(FREE, 1)).wait_seconds
    await pace.tell(FREE, first, Report(Outcome.ALIVE))
    assert await pace.take(FREE, 1) == Permit(tokens=1)
    assert await redis.dbsize() == 0


def refusal(retry_after: float | None = None) -> ModelUnavailable:
    return ModelUnavailable("busy", code=RunCode.RATE_LIMIT, retry_after=retry_after)


class Bench:
    def __init__(self, redis: Redis, limits: Limits | None = None) -> None:
        self.time = 0.0
        self.rate = Rate(Pace(redis), WHERE, limits, now=lambda: self.time)


async def test_an_endpoint_without_limits_is_seldom_asked_about(redis: Redis) -> None:
    bench = Bench(redis)
    before = await calls(redis)
    for _ in range(10):
        await bench.rate.answered("m", await bench.rate.enter(REQUEST), say("yes"))
    assert await calls(redis) - before == 1
    bench.time += FREE_SECONDS
    await bench.rate.enter(REQUEST)
    assert await calls(redis) - before == 2


async def calls(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


async def test_what_headers_say_goes_on_with_the_answer(redis: Redis) -> None:
    bench, other = Bench(redis), Bench(redis)
    permit = await bench.rate.enter(REQUEST)
    bench.rate.hear("m", {"x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-requests": "0"})
    await bench.rate.answered("m", permit, say("yes"))
    assert (await other.rate.enter(REQUEST)).wait_seconds > 0
    assert (await bench.rate.enter(REQUEST)).wait_seconds > 0


async def test_what_an_answer_took_is_what_is_counted(redis: Redis) -> None:
    bench = Bench(redis, Limits(tokens_per_minute=1100))
    permit = await bench.rate.enter(REQUEST)  # expected: 501
    await bench.rate.answered("m", permit, say("yes", tokens=Tokens(input=400, output=500)))
    assert (await bench.rate.enter(REQUEST)).wait_seconds > 0


async def test_a_refusal_is_said_once_and_closes(redis: Redis) -> None:
    bench = Bench(redis)
    with capture_logs() as lines:
        permit = await bench.rate.enter(REQUEST)
        for _ in range(2):
            wait = await bench.rate.limited("m", permit, refusal(20.0))
            assert wait is not None
            assert 19 < wait <= 20
    assert [(line["event"], line["endpoint"], line["model"]) for line in lines] == [
        ("endpoint_limited", "models.test:9", "m")
    ]
    assert (await bench.rate.enter(REQUEST)).wait_seconds > 19


async def test_a_refusal_without_a_time_takes_that_of_the_reset(redis: Redis) -> None:
    bench = Bench(redis)
    reset = {
        "x-ratelimit-limit-tokens": "10",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "17s",
    }
    bench.rate.hear("m", reset)
    wait = await bench.rate.limited("m", Permit(), refusal())
    assert wait is not None
    assert 16 < wait <= 17


async def test_without_redis_all_may_go(free_tcp_port: int) -> None:
    away = connect(f"redis://127.0.0.1:{free_tcp_port}")
    bench = Bench(away, Limits(requests_per_minute=1))
    permit = await bench.rate.enter(REQUEST)
    await bench.rate.answered("m", permit, say("yes"))
    assert permit == Permit()
    assert await bench.rate.limited("m", permit, refusal(1.0)) is None
    await away.aclose()


@pytest.mark.parametrize("limits", [Limits(0, 0), Limits(3, 0), Limits(0, 3)])
def test_a_limit_is_a_limit(limits: Limits) -> None:
    assert limits.any is (limits != Limits())
