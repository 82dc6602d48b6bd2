import pytest

from posthouse.errors import (
    ContentRefused,
    EndpointDown,
    Fatal,
    ModelUnavailable,
    RateLimited,
    RunCode,
)
from posthouse.llm.messages import ModelRequest, UserMessage
from posthouse.llm.retry import Retry, RetryingProvider, RetryPolicy
from posthouse.testing.provider import Line, ScriptedProvider, say

REQUEST = ModelRequest(model="m", messages=(UserMessage(text="hi"),))


class Bench:
    def __init__(self, *script: Line, policy: RetryPolicy | None = None) -> None:
        self.scripted = ScriptedProvider(script)
        self.slept: list[float] = []
        self.retries: list[Retry] = []
        self.text: list[str] = []
        self.provider = RetryingProvider(self.scripted, policy, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def ask(self) -> str:
        completion = await self.provider.complete(REQUEST, self.text.append, self.retries.append)
        return completion.text


def unavailable(retry_after: float | None = None) -> ModelUnavailable:
    return ModelUnavailable("down", code=RunCode.SERVER_ERROR, retry_after=retry_after)


async def test_a_passing_failure_is_tried_again_with_growing_patience() -> None:
    bench = Bench(unavailable(), unavailable(), say("yes"))
    assert await bench.ask() == "yes"
    assert [retry.attempt for retry in bench.retries] == [1, 2]
    assert 2 <= bench.slept[0] <= 4
    assert 4 <= bench.slept[1] <= 8
    assert bench.retries[0].delay_ms == round(bench.slept[0] * 1000)


async def test_no_wait_is_longer_than_the_longest() -> None:
    policy = RetryPolicy(attempts=40)
    bench = Bench(*[unavailable()] * 39, say("yes"), policy=policy)
    await bench.ask()
    assert all(5 <= slept <= 10 for slept in bench.slept[2:])


async def test_the_third_failure_is_raised() -> None:
    bench = Bench(unavailable(), unavailable(), unavailable(), say("never"))
    with pytest.raises(ModelUnavailable, match="down"):
        await bench.ask()
    assert len(bench.scripted.requests) == 3


@pytest.mark.parametrize("error", [Fatal("bad key"), ContentRefused("no"), ValueError("a fault")])
async def test_what_does_not_pass_is_raised_at_once(error: Exception) -> None:
    bench = Bench(error)
    with pytest.raises(type(error)):
        await bench.ask()
    assert (len(bench.scripted.requests), bench.retries) == (1, [])


PATIENT = RetryPolicy(patience=60.0)


async def test_retry_after_is_honoured() -> None:
    bench = Bench(unavailable(retry_after=30), say("yes"), policy=PATIENT)
    await bench.ask()
    assert 30 <= bench.slept[0] <= 33


@pytest.mark.parametrize("asked", [0.001, 0.3, 7.0, 60.0])
async def test_nobody_comes_back_before_the_time_nor_all_at_once(asked: float) -> None:
    slept = []
    for _ in range(50):
        bench = Bench(unavailable(retry_after=asked), say("yes"), policy=PATIENT)
        await bench.ask()
        slept += bench.slept
    assert min(slept) >= asked
    assert max(slept) <= asked * 1.1
    assert len(set(slept)) > 25


@pytest.mark.parametrize("asked", [None, 0.0])
async def test_where_no_time_is_given_the_patience_is_our_own(asked: float | None) -> None:
    bench = Bench(unavailable(asked), unavailable(asked), say("yes"))
    await bench.ask()
    assert min(bench.slept) >= 2


@pytest.mark.parametrize(("asked", "least"), [(2.1, 2.1), (61.0, 60.0), (86_400.0, 60.0)])
async def test_a_retry_after_beyond_patience_is_for_a_run_without_a_worker(
    asked: float, least: float
) -> None:
    for code, kind in ((RunCode.SERVER_ERROR, EndpointDown), (RunCode.RATE_LIMIT, RateLimited)):
        bench = Bench(ModelUnavailable("down", code=code, retry_after=asked))
        with pytest.raises(EndpointDown) as raised:
            await bench.ask()
        assert type(raised.value) is kind
        assert least <= raised.value.wait_seconds <= least * 1.1
        assert bench.slept == []


async def test_the_policy_can_be_another() -> None:
    bench = Bench(unavailable(), policy=RetryPolicy(attempts=1))
    with pytest.raises(ModelUnavailable):
        await bench.ask()
    assert bench.slept == []
