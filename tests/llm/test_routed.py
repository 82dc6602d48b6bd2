"""The models of a route are asked one after another: when the next one's turn comes, what is raised at the end."""

from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from posthouse.errors import (
    ContentRefused,
    EndpointDown,
    Fatal,
    ModelUnavailable,
    RateLimited,
    RunCode,
)
from posthouse.llm.breaker import Breaker, BreakerPolicy, Endpoint
from posthouse.llm.guarded import Guarded
from posthouse.llm.messages import Completion, ModelRequest, UserMessage
from posthouse.llm.pace import Lane, Limits, Pace
from posthouse.llm.rate import Rate
from posthouse.llm.retry import Retry, RetryingProvider
from posthouse.llm.routed import Hooks, Prepare, Routed
from posthouse.llm.router import Choice, Reference, Routes, SkipCandidate, Tier, Wanted
from posthouse.storage import keys
from posthouse.telemetry import Metrics
from posthouse.testing.provider import Line, ScriptedProvider, say

REQUEST = ModelRequest(model="-", messages=(UserMessage(text="hi"),))
BIG, OTHER, SMALL = Reference("a", "big"), Reference("b", "other"), Reference("a", "small")
ROUTES = Routes(smart=(BIG, OTHER), fast=(SMALL,))
AT_ONCE = BreakerPolicy(failures=1, span=0, first=60)


class Bench:
    """Two endpoints, a and b, each with a script, behind their breakers and rates."""

    def __init__(
        self,
        redis: Redis,
        a: list[Line],
        b: list[Line] | None = None,
        *,
        routes: Routes = ROUTES,
        limits: Limits | None = None,
        breaker: BreakerPolicy | None = None,
    ) -> None:
        self.slept: list[float] = []
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        self.told: list[str] = []
        self.scripts = {"a": ScriptedProvider(a), "b": ScriptedProvider(b or [])}
        metrics = Metrics(CollectorRegistry())
        self.where = {name: Endpoint.at(f"http://{name}/v1") for name in "ab"}
        providers = {
            name: RetryingProvider(
                Guarded(
                    script,
                    Breaker(redis, breaker),
                    self.where[name],
                    metrics,
                    rate=Rate(Pace(redis), self.where[name], limits if name == "a" else None),
                ),
                sleep=self._sleep,
            )
            for name, script in self.scripts.items()
        }
        self.routed = Routed(providers, routes, sleep=self._sleep)

    async def ask(self, wanted: Wanted | None = None, prepare: Prepare | None = None) -> Completion:
        hooks = Hooks(lambda _: None, self._retried, self._routed, prepare)
        return await self.routed.complete(REQUEST, wanted or Wanted(), hooks)

    def asked(self, name: str) -> list[str]:
        return [request.model for request in self.scripts[name].requests]

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.meanwhile:
            await self.meanwhile()

    def _retried(self, retry: Retry) -> None:
        self.told.append(f"retry {retry.code} {retry.attempt}")

    def _routed(self, choice: Choice) -> None:
        self.told.append(f"{choice.provider}:{choice.model} {choice.tier} {choice.reason}")


def down(code: RunCode = RunCode.SERVER_ERROR, after: float | None = None) -> ModelUnavailable:
    return ModelUnavailable("down", code=code, retry_after=after)


def busy(after: float | None = None) -> ModelUnavailable:
    return down(RunCode.RATE_LIMIT, after)


async def test_the_first_model_answers_and_says_where_it_is(redis: Redis) -> None:
    bench = Bench(redis, [say("yes")])
    answer = await bench.ask()
    assert (answer.text, answer.provider, bench.asked("a")) == ("yes", "a", ["big"])
    assert bench.told == ["a:big smart tier"]
    assert await redis.dbsize() == 0


async def test_a_model_that_fails_again_and_again_gives_way_to_the_next(redis: Redis) -> None:
    bench = Bench(redis, [down()] * 3, [say("yes")])
    assert (await bench.ask()).provider == "b"
    assert bench.told == [
        "a:big smart tier",
        "retry server_error 1",
        "retry server_error 2",
        "b:other smart fallback",
    ]


@pytest.mark.parametrize("after", [None, 0.5, 30.0])
async def test_a_refusal_for_the_rate_gives_way_at_once(redis: Redis, after: float | None) -> None:
    bench = Bench(redis, [busy(after)], [say("yes"), say("again")])
    assert (await bench.ask()).provider == "b"
    assert (await bench.ask()).provider == "b"
    assert bench.told == [
        "a:big smart tier",
        "b:other smart rate_limited",
        "b:other smart rate_limited",
    ]
    assert bench.slept == []


async def test_an_open_breaker_gives_way_at_once(redis: Redis) -> None:
    bench = Bench(redis, [down()], [say("yes"), say("again")], breaker=AT_ONCE)
    await bench.ask()
    await bench.ask()
    assert (bench.asked("a"), bench.told[-1]) == (["big"], "b:other smart breaker_open")


async def test_another_model_of_the_same_endpoint_has_a_rate_of_its_own(redis: Redis) -> None:
    bench = Bench(redis, [busy(30.0), say("yes")], routes=Routes((BIG, SMALL), (SMALL,)))
    assert (await bench.ask()).provider == "a"
    assert bench.asked("a") == ["big", "small"]


async def test_all_limited_is_waited_for_as_long_as_the_nearest_says(redis: Redis) -> None:
    bench = Bench(redis, [busy(30.0)], [busy(9.0)])
    with pytest.raises(RateLimited) as raised:
        await bench.ask()
    assert 8 < raised.value.wait_seconds <= 13.5
    again = Bench(redis, [], [])
    with pytest.raises(RateLimited):
        await again.ask()
    assert (bench.slept, again.told) == ([], [])


async def test_a_short_wait_is_waited_for_in_place(redis: Redis) -> None:
    bench = Bench(redis, [busy(0.5), say("yes")], routes=Routes((BIG,), (SMALL,)))
    pace = keys.pace(Lane(bench.where["a"].digest, "big").digest)
    bench.meanwhile = lambda: redis.hset(pace, "closed_until", 1)
    assert (await bench.ask()).text == "yes"
    assert (len(bench.slept), 0.4 < bench.slept[0] <= 0.75) == (1, True)
    assert bench.told == ["a:big smart tier", "retry rate_limit 1", "a:big smart tier"]


async def test_one_that_failed_is_no_end_while_another_may_be_asked_later(redis: Redis) -> None:
    bench = Bench(redis, [down()] * 3, [busy(30.0)])
    with pytest.raises(RateLimited):
        await bench.ask()


async def test_when_all_failed_the_first_ones_failure_is_raised(redis: Redis) -> None:
    bench = Bench(redis, [down()] * 3, [down(RunCode.TIMEOUT)] * 3)
    with pytest.raises(ModelUnavailable) as raised:
        await bench.ask()
    assert raised.value.code is RunCode.SERVER_ERROR


@pytest.mark.parametrize("error", [Fatal("bad key"), ContentRefused("no")])
async def test_what_does_not_pass_is_raised_at_once(redis: Redis, error: Exception) -> None:
    bench = Bench(redis, [error])
    with pytest.raises(type(error)):
        await bench.ask()
    assert bench.asked("b") == []


async def test_a_limit_of_the_operator_is_kept_by_two_workers(redis: Redis) -> None:
    limits = Limits(requests_per_minute=3)
    benches = [Bench(redis, [say("a")] * 9, [say("b")] * 9, limits=limits) for _ in range(2)]
    answers = [(await benches[n % 2].ask()).provider for n in range(8)]
    assert answers == ["a"] * 3 + ["b"] * 5


async def test_prepare_sees_each_model_before_it_is_asked_and_may_change_the_request(
    redis: Redis,
) -> None:
    bench = Bench(redis, [down()] * 3, [say("yes")])
    seen: list[str] = []

    async def prepare(choice: Choice, request: ModelRequest) -> ModelRequest:
        seen.append(f"{choice.provider}:{request.model}")
        return request.model_copy(update={"max_output_tokens": 7})

    await bench.ask(prepare=prepare)
    assert seen == ["a:big", "b:other"]
    sent = [request.max_output_tokens for name in "ab" for request in bench.scripts[name].requests]
    assert sent == [7] * 4


async def test_prepare_may_skip_a_model_and_refuse_all(redis: Redis) -> None:
    bench = Bench(redis, [], [say("yes")], limits=Limits(requests_per_minute=1))

    async def only_b(choice: Choice, request: ModelRequest) -> ModelRequest:
        if choice.provider == "a":
            raise SkipCandidate("no price")
        return request

    async def none(choice: Choice, request: ModelRequest) -> ModelRequest:
        raise SkipCandidate("no price")

    async def refuses(choice: Choice, request: ModelRequest) -> ModelRequest:
        raise Fatal("no budget")

    assert (await bench.ask(prepare=only_b)).provider == "b"
    assert bench.told == ["b:other smart fallback"]
    for _ in range(3):  # what is not asked takes no room of its minute
        with pytest.raises(SkipCandidate):
            await bench.ask(prepare=none)
    with pytest.raises(Fatal, match="no budget"):
        await bench.ask(prepare=refuses)
    assert bench.asked("a") == []


async def test_prepare_is_not_called_for_a_model_that_is_not_asked(redis: Redis) -> None:
    await Bench(redis, [busy(30.0)], [say("yes")]).ask()
    bench, seen = Bench(redis, [], [say("yes")]), []

    async def prepare(choice: Choice, request: ModelRequest) -> ModelRequest:
        seen.append(choice.provider)
        return request

    await bench.ask(prepare=prepare)
    assert seen == ["b"]


async def test_a_probe_that_prepare_refuses_lets_the_next_one_go(redis: Redis) -> None:
    bench = Bench(redis, [down(), say("yes")], breaker=AT_ONCE, routes=Routes((BIG,), (SMALL,)))

    async def refuses(choice: Choice, request: ModelRequest) -> ModelRequest:
        raise Fatal("no budget")

    with pytest.raises(EndpointDown):
        await bench.ask()
    await redis.hset(keys.endpoint(bench.where["a"].digest), "open_until", 1)
    with pytest.raises(Fatal):
        await bench.ask(prepare=refuses)
    while await redis.hget(keys.endpoint(bench.where["a"].digest), "probe"):
        await redis.blpop(["never"], timeout=0.01)
    assert (await bench.ask()).text == "yes"


async def test_a_run_may_name_its_models_but_only_where_there_is_an_endpoint(redis: Redis) -> None:
    bench = Bench(redis, [say("yes")])
    own = Wanted(Tier.SMART, {"smart": ("a:new",)})
    await bench.ask(own)
    assert bench.told == ["a:new smart run_override"]
    assert [bench.routed.label(bench.routed.choices(w)[0]) for w in (own, Wanted())] == [
        "other",
        "big",
    ]
    with pytest.raises(Fatal, match="'c', which is no endpoint"):
        await bench.ask(Wanted(Tier.SMART, {"smart": ("c:m",)}))


async def test_a_budget_that_runs_out_asks_the_fast_tier(redis: Redis) -> None:
    bench = Bench(redis, [say("yes")])
    await bench.ask(Wanted(cheaper=True))
    assert bench.told == ["a:small fast cheaper"]
