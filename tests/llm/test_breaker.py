"""Breakers on a real server; their time passes by setting the moments that are stored back."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from posthouse.errors import ConfigurationError
from posthouse.llm.breaker import Breaker, BreakerPolicy, Endpoint, Gate, Sign, Standing
from posthouse.storage import keys

WHERE = Endpoint.at("https://models.test/v1")
KEY = keys.endpoint(WHERE.digest)
CLOSED = Standing(open=False, turned=False, wait_seconds=0)
MOMENTS = ("since", "open_until", "probe_until")


class Bench:
    """A breaker, the tries of which have a token each."""

    def __init__(self, redis: Redis, policy: BreakerPolicy | None = None) -> None:
        self.redis = redis
        self.breaker = Breaker(redis, policy)
        self.tries = 0

    async def says(self, sign: Sign, token: str = "") -> Standing:
        self.tries += 1
        return await self.breaker.report(WHERE, token or f"t{self.tries}", sign)

    async def asks(self, token: str) -> Gate:
        return (await self.breaker.admit(WHERE, token)).gate

    async def passes(self, seconds: float) -> None:
        for name, moment in zip(MOMENTS, await self.redis.hmget(KEY, *MOMENTS), strict=True):
            if int(moment or 0):
                await self.redis.hset(KEY, name, int(moment) - round(seconds * 1000))

    async def opens(self) -> Standing:
        await self.says(Sign.FAILED)
        await self.says(Sign.FAILED)
        await self.passes(1)
        return await self.says(Sign.FAILED)

    async def is_open_for(self) -> float:
        admission = await self.breaker.admit(WHERE, "looks")
        assert admission.gate is Gate.OPEN
        return admission.wait_seconds


@pytest.fixture
def bench(redis: Redis) -> Bench:
    return Bench(redis)


def about(seconds: float) -> object:
    return pytest.approx(seconds, abs=1)


async def test_an_endpoint_that_lives_leaves_nothing_in_redis(bench: Bench) -> None:
    assert await bench.asks("a") is Gate.CLOSED
    assert await bench.says(Sign.ALIVE, "a") == CLOSED
    assert await bench.says(Sign.DROPPED, "a") == CLOSED
    assert await bench.redis.dbsize() == 0


async def test_it_opens_for_all_at_the_third_failure_in_a_row(bench: Bench) -> None:
    assert await bench.says(Sign.FAILED) == CLOSED
    assert await bench.says(Sign.FAILED) == CLOSED
    await bench.passes(1)
    assert await bench.asks("a") is Gate.CLOSED
    opened = await bench.says(Sign.FAILED)
    assert (opened.open, opened.turned, opened.wait_seconds) == (True, True, about(5))
    assert await Bench(bench.redis).is_open_for() == about(5)
    assert 3_590_000 < await bench.redis.pttl(KEY) <= 3_600_000
    elsewhere = Endpoint.at("https://other.test/v1")
    assert (await bench.breaker.admit(elsewhere, "a")).gate is Gate.CLOSED


async def test_many_failures_in_one_moment_do_not_open_it(bench: Bench) -> None:
    for _ in range(20):
        assert await bench.says(Sign.FAILED) == CLOSED
    await bench.passes(1)
    assert (await bench.says(Sign.FAILED)).turned


async def test_a_success_in_between_begins_a_new_streak(bench: Bench) -> None:
    await bench.says(Sign.FAILED)
    await bench.says(Sign.FAILED)
    await bench.passes(10)
    assert await bench.says(Sign.ALIVE) == CLOSED
    assert await bench.says(Sign.FAILED) == CLOSED
    await bench.passes(10)
    assert await bench.says(Sign.FAILED) == CLOSED
    assert (await bench.says(Sign.FAILED)).turned


async def test_failures_of_calls_that_were_under_way_change_nothing(bench: Bench) -> None:
    await bench.opens()
    late = await bench.says(Sign.FAILED)
    assert (late.open, late.turned, late.wait_seconds) == (True, False, about(5))
    assert await bench.is_open_for() == about(5)


async def test_tries_from_before_the_opening_do_not_open_it_again(bench: Bench) -> None:
    await bench.opens()
    await bench.passes(6)
    assert await bench.asks("p") is Gate.PROBE
    late = await bench.breaker.report(WHERE, "old", Sign.FAILED, probe=False)
    assert not late.turned
    assert await bench.says(Sign.ALIVE, "p") == Standing(open=False, turned=True, wait_seconds=0)


async def test_when_its_time_is_over_one_caller_becomes_the_probe(bench: Bench) -> None:
    await bench.opens()
    await bench.passes(5)
    gates = await asyncio.gather(*(bench.asks(f"p{n}") for n in range(20)))
    assert sorted(gates).count(Gate.PROBE) == 1
    probe = f"p{gates.index(Gate.PROBE)}"
    assert await bench.asks(probe) is Gate.PROBE
    assert await bench.is_open_for() == 2
    assert await bench.says(Sign.ALIVE, probe) == Standing(False, True, 0)
    assert await bench.says(Sign.ALIVE, probe) == CLOSED
    assert await bench.redis.dbsize() == 0


async def test_each_failed_probe_doubles_its_time_up_to_a_minute(bench: Bench) -> None:
    period = (await bench.opens()).wait_seconds
    periods = []
    for n in range(6):
        periods.append(round(period))
        await bench.passes(period)
        assert await bench.asks(f"p{n}") is Gate.PROBE
        failed = await bench.says(Sign.FAILED, f"p{n}")
        assert failed.turned
        period = failed.wait_seconds
    assert periods == [5, 10, 20, 40, 60, 60]


async def test_a_probe_that_never_reports_is_followed_by_another(bench: Bench) -> None:
    await bench.opens()
    await bench.passes(5)
    assert await bench.asks("lost") is Gate.PROBE
    await bench.passes(29)
    assert await bench.is_open_for() == about(1)
    await bench.passes(1)
    assert await bench.asks("next") is Gate.PROBE
    # What a long call finds out in the end is still worth knowing.
    assert (await bench.says(Sign.FAILED, "lost")).wait_seconds == about(10)
    assert await bench.asks("next") is Gate.OPEN
    assert (await bench.says(Sign.ALIVE, "next")).turned


async def test_a_probe_that_was_dropped_is_given_back(bench: Bench) -> None:
    await bench.opens()
    await bench.passes(5)
    assert await bench.asks("a") is Gate.PROBE
    assert (await bench.says(Sign.DROPPED, "b")).wait_seconds == 2
    assert await bench.asks("b") is Gate.OPEN
    for _ in range(2):
        assert await bench.says(Sign.DROPPED, "a") == Standing(True, False, 0)
    assert await bench.asks("b") is Gate.PROBE


async def test_a_report_whose_reply_was_lost_counts_once(bench: Bench) -> None:
    for _ in range(3):
        assert await bench.says(Sign.FAILED, "a") == CLOSED
    await bench.passes(1)
    assert await bench.says(Sign.FAILED, "b") == CLOSED
    for _ in range(2):
        opened = await bench.says(Sign.FAILED, "c")
        assert (opened.turned, opened.wait_seconds) == (True, about(5))


async def test_the_policy_can_be_another(redis: Redis) -> None:
    bench = Bench(redis, BreakerPolicy(failures=1, span=0, first=0.3, longest=0.5, probe=9, look=1))
    assert 0.29 <= (await bench.says(Sign.FAILED)).wait_seconds <= 0.3
    await bench.passes(0.3)
    assert await bench.asks("a") is Gate.PROBE
    assert await bench.is_open_for() == 1
    assert 0.49 <= (await bench.says(Sign.FAILED, "a")).wait_seconds <= 0.5


@pytest.mark.parametrize(
    "same",
    [
        "https://models.test/v1/",
        "HTTPS://Models.Test:443/v1",
        "https://me:secret@models.test/v1?k=1",
    ],
)
def test_an_endpoint_is_the_same_however_it_is_written(same: str) -> None:
    assert Endpoint.at(same) == WHERE
    assert WHERE.host == "models.test:443"
    assert len(WHERE.digest) == 16


@pytest.mark.parametrize(
    "other",
    [
        "http://models.test/v1",
        "https://models.test:8443/v1",
        "https://models.test/v2",
        "https://m.test",
    ],
)
def test_another_endpoint_is_another(other: str) -> None:
    assert Endpoint.at(other).digest != WHERE.digest


@given(st.text(), st.sampled_from(["", "http://", "https://k:secret@", "https://["]))
def test_any_text_is_an_endpoint_or_refused(text: str, start: str) -> None:
    try:
        endpoint = Endpoint.at(start + text)
    except ConfigurationError:
        return
    assert len(endpoint.digest) == 16
    assert "@" not in endpoint.host
