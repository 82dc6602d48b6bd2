"""A provider behind its breaker: what counts as a failure, and that an open breaker costs no try."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from structlog.testing import capture_logs

from posthouse.errors import ContentRefused, EndpointDown, Fatal, ModelUnavailable, RunCode
from posthouse.llm.breaker import Breaker, BreakerPolicy, Endpoint
from posthouse.llm.guarded import Guarded
from posthouse.llm.messages import Completion, ModelRequest, UserMessage
from posthouse.llm.retry import Retry, RetryingProvider
from posthouse.storage import keys
from posthouse.storage.connect import connect
from posthouse.telemetry import Metrics
from posthouse.testing.provider import Line, ScriptedProvider, say

REQUEST = ModelRequest(model="m", messages=(UserMessage(text="hi"),))
WHERE = Endpoint.at("http://me:secret@models.test:9/v1")
KEY = keys.endpoint(WHERE.digest)
AT_ONCE = BreakerPolicy(failures=1, span=0)


class Bench:
    def __init__(self, redis: Redis, *script: Line) -> None:
        self.redis = redis
        self.registry = CollectorRegistry()
        self.scripted = ScriptedProvider(script)
        self.guarded = Guarded(
            self.scripted, Breaker(redis, AT_ONCE), WHERE, Metrics(self.registry)
        )

    async def ask(self) -> str:
        return (await self.guarded.complete(REQUEST, lambda _: None)).text

    async def fails(self) -> None:
        with pytest.raises(ModelUnavailable):
            await self.ask()

    async def time_is_over(self) -> None:
        await self.redis.hset(KEY, "open_until", 1)

    @property
    def opened(self) -> float | None:
        return self.registry.get_sample_value("model_breaker_opened_total")


def down(code: RunCode = RunCode.CONNECTION) -> ModelUnavailable:
    return ModelUnavailable("down", code=code)


async def test_an_open_breaker_makes_no_request(redis: Redis) -> None:
    bench = Bench(redis, down())
    other = Bench(redis)
    await bench.fails()
    waits = []
    for _ in range(20):
        with pytest.raises(EndpointDown) as raised:
            await other.ask()
        waits.append(raised.value.wait_seconds)
    assert other.scripted.requests == []
    assert all(4 <= wait <= 7.5 for wait in waits)
    assert len({round(wait, 2) for wait in waits}) > 10


async def test_no_wait_is_too_short_to_be_worth_parking(redis: Redis) -> None:
    bench = Bench(redis, down())
    await bench.fails()
    seconds, micros = await redis.time()
    soon = seconds * 1000 + micros // 1000 + 100
    await redis.hset(KEY, mapping={"open_until": 1, "probe": "x", "probe_until": soon})
    with pytest.raises(EndpointDown) as raised:
        await bench.ask()
    assert raised.value.wait_seconds == 0.2


@pytest.mark.parametrize("code", [RunCode.CONNECTION, RunCode.SERVER_ERROR, RunCode.TIMEOUT])
async def test_what_a_dead_endpoint_does_opens_it(redis: Redis, code: RunCode) -> None:
    bench = Bench(redis, down(code))
    await bench.fails()
    with pytest.raises(EndpointDown):
        await bench.ask()


@pytest.mark.parametrize(
    "line", [say("yes"), down(RunCode.RATE_LIMIT), ContentRefused("no"), Fatal("bad key")]
)
async def test_whatever_else_it_says_shows_that_it_lives(redis: Redis, line: Line) -> None:
    bench = Bench(redis, line, down(), line)
    await tried(bench)
    assert await redis.dbsize() == 0
    await bench.fails()
    await bench.time_is_over()
    await tried(bench)
    assert await redis.dbsize() == 0


async def tried(bench: Bench) -> None:
    with contextlib.suppress(ModelUnavailable, ContentRefused, Fatal):
        await bench.ask()


async def test_a_request_that_meets_a_breaker_keeps_its_tries(redis: Redis) -> None:
    bench = Bench(redis, down(), say("never"))
    slept: list[float] = []
    retries: list[Retry] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    retrying = RetryingProvider(bench.guarded, sleep=sleep)
    with pytest.raises(EndpointDown):
        await retrying.complete(REQUEST, lambda _: None, retries.append)
    assert (len(bench.scripted.requests), len(slept), len(retries)) == (1, 1, 1)


async def test_opening_and_closing_are_said_once_and_without_secrets(redis: Redis) -> None:
    with capture_logs() as lines:
        bench = Bench(redis, down(), down(), say("yes"), say("yes"))
        await bench.fails()
        with pytest.raises(EndpointDown):
            await bench.ask()
        await bench.time_is_over()
        with pytest.raises(EndpointDown):  # a probe, which is no try of its run
            await bench.ask()
        await bench.time_is_over()
        assert await bench.ask() == await bench.ask() == "yes"
    said = [(line["event"], line["log_level"], line["endpoint"]) for line in lines]
    assert said == [
        ("breaker_opened", "warning", "models.test:9"),
        ("breaker_opened", "warning", "models.test:9"),
        ("breaker_closed", "info", "models.test:9"),
    ]
    assert "secret" not in str(lines)
    assert bench.opened == 2


async def test_a_cancelled_call_says_nothing_and_gives_its_probe_back(redis: Redis) -> None:
    reached = asyncio.Event()

    async def hangs(request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    bench = Bench(redis, hangs, down(), hangs, say("yes"))
    await cancelled(bench, reached)
    assert await redis.dbsize() == 0
    await bench.fails()
    await bench.time_is_over()
    await cancelled(bench, reached)
    async with asyncio.timeout(5):
        while await redis.hget(KEY, "probe"):
            await redis.blpop(["never"], timeout=0.01)
    assert await bench.ask() == "yes"


async def cancelled(bench: Bench, reached: asyncio.Event) -> None:
    reached.clear()
    asking = asyncio.ensure_future(bench.ask())
    await asyncio.wait_for(reached.wait(), 5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_fault_of_the_provider_is_raised_and_gives_the_probe_back(redis: Redis) -> None:
    bench = Bench(redis, down(), ValueError("a fault"), say("yes"))
    await bench.fails()
    await bench.time_is_over()
    with pytest.raises(ValueError, match="a fault"):
        await bench.ask()
    assert await bench.ask() == "yes"


async def test_without_redis_everything_is_let_through(free_tcp_port: int) -> None:
    away = connect(f"redis://127.0.0.1:{free_tcp_port}")
    bench = Bench(away, down(), say("yes"))
    await bench.fails()
    assert await bench.ask() == "yes"
    assert bench.opened == 0
    await away.aclose()


async def test_a_failed_probe_is_no_try_of_its_run(redis: Redis) -> None:
    bench = Bench(redis, down(), down(), say("yes"))
    await bench.fails()
    await bench.time_is_over()
    with pytest.raises(EndpointDown):
        await bench.ask()
    await bench.time_is_over()
    assert await bench.ask() == "yes"


async def test_a_probe_that_is_cancelled_while_it_is_granted_lets_the_next_one_go(
    redis: Redis,
) -> None:
    bench = Bench(redis, down(), say("yes"))
    await bench.fails()
    await bench.time_is_over()
    for turns in range(1, 6):
        asking = asyncio.ensure_future(bench.ask())
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(EndpointDown):
                assert await bench.ask() == "yes"
                return
