"""What the budget allows, straight from the script that says so."""

import orjson
import pytest
from redis.asyncio import Redis

from posthouse.budget.ledger import Ledger
from posthouse.budget.model import Budget, Busy, Granted, OnExceeded, Refused, Reservation
from posthouse.events.types import Draft, RunCompleted, RunCreated
from posthouse.ids import new_run_id
from posthouse.journal.model import Usage
from posthouse.journal.store import JournalStore, Record
from posthouse.runs.model import Status
from posthouse.runs.ownership import Claimed
from posthouse.runs.transitions import Acceptance, Ending, Transitions
from posthouse.storage import keys

CREATED = Draft(event=RunCreated(workflow="echo", version=1))
HOUR_MS = 3_600_000


class Bench:
    """One run with a budget, claimed."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.transitions, self.journal = Transitions(redis), JournalStore(redis)
        self.ledger = Ledger(redis)
        self.run: Claimed

    async def accept(self, budget: Budget) -> None:
        wanted = Acceptance(
            *(new_run_id(), "default", "echo", 1, "{}", "{}", CREATED),
            ttl_ms=60_000,
            budget=tuple(budget.rows()),
        )
        await self.transitions.accept(wanted)
        await self.claim()

    async def claim(self) -> None:
        [self.run] = await self.transitions.claim("w", new_run_id(), 60_000, 1, [("echo", 1)])

    async def reserve(
        self, step: str = "a", *, most: int = 100, **parts: int | None
    ) -> Granted | Refused | Busy:
        usual = {"least": 10, "model_calls": 1, "input_tokens": 50} | parts
        wanted = Reservation(step, most=most, **usual)  # type: ignore[arg-type]
        seq, verdict = await self.journal.reserve(self.run, 0, wanted)
        assert seq == int(await self.redis.hget(keys.run(self.run.run_id), "seq"))
        return verdict

    async def commit(self, step: str, usage: Usage) -> None:
        await self.journal.commit(self.run, 0, Record(step, b'{"result":1}', usage=usage))

    async def reserved(self) -> dict[str, int]:
        return dict((await self.state()).reserved)

    async def state(self):
        state = await self.ledger.of(self.run.run_id)
        assert state is not None
        return state

    async def events(self) -> list[tuple[str, dict[str, object]]]:
        entries = await self.redis.xrange(keys.events(self.run.run_id))
        kinds = [(f[b"type"].decode(), orjson.loads(f[b"data"])) for _, f in entries]
        return [one for one in kinds if one[0].startswith("budget.")]


@pytest.fixture
def bench(redis: Redis) -> Bench:
    return Bench(redis)


async def test_a_call_gets_the_tokens_that_the_rest_buys(bench: Bench) -> None:
    await bench.accept(Budget(tokens=120))
    assert await bench.reserve() == Granted(70)
    assert (await bench.reserved())["tokens"] == 120


async def test_and_no_more_than_its_money_buys(bench: Bench) -> None:
    await bench.accept(Budget(usd=0.000001))  # 1,000 nano
    prices = {"input_nano_usd": 100, "thousand_output_nano_usd": 30_000}
    assert await bench.reserve(**prices) == Granted(30)
    assert (await bench.reserved())["nano_usd"] == 1000
    assert await bench.reserve(least=31, **prices) == Refused("nano_usd", 0)
    assert (await bench.reserved())["nano_usd"] == 0


async def test_the_same_call_made_twice_reserves_once(bench: Bench) -> None:
    await bench.accept(Budget(tokens=1000, model_calls=1))
    assert await bench.reserve() == await bench.reserve() == Granted(100)
    state = await bench.state()
    assert (state.reserved["tokens"], state.lost["tokens"], state.spent["tokens"]) == (150, 0, 0)


async def test_a_commit_settles_what_its_step_reserved(bench: Bench) -> None:
    await bench.accept(Budget(tokens=1000))
    await bench.reserve()
    await bench.commit("a", Usage(model_calls=1, input_tokens=7, output_tokens=3, wasted_tokens=2))
    state = await bench.state()
    assert state.spent["tokens"] == 12
    assert set(state.reserved.values()) == {0}


async def test_what_calls_in_flight_hold_is_waited_for_and_what_is_spent_is_not(
    bench: Bench,
) -> None:
    await bench.accept(Budget(model_calls=1))
    await bench.reserve("a")
    assert await bench.reserve("b") == Busy()
    assert await bench.events() == []
    await bench.commit("a", Usage(model_calls=1))
    assert await bench.reserve("b") == Refused("model_calls", 100)


async def test_a_call_waits_rather_than_be_cut_short(bench: Bench) -> None:
    await bench.accept(Budget(tokens=3000))
    assert await bench.reserve("a", most=2500) == Granted(2500)
    assert await bench.reserve("b", most=2500) == Busy()
    await bench.commit("a", Usage(input_tokens=100))
    assert await bench.reserve("b", most=2500) == Granted(2500, 3)


async def test_tries_that_failed_stay_reserved_until_the_commit(bench: Bench) -> None:
    await bench.accept(Budget(tokens=200))
    await bench.reserve()
    assert await bench.reserve(wasted_tokens=60) == Granted(90)
    assert (await bench.reserved())["tokens"] == 200
    await bench.reserve(model_calls=0, input_tokens=0, most=0, least=0, wasted_tokens=60)
    assert await bench.reserved() == {
        "tokens": 60, "nano_usd": 0, "model_calls": 0, "tool_calls": 0,
    }  # fmt: skip


async def test_the_end_of_an_ownership_spends_what_is_reserved(bench: Bench) -> None:
    await bench.accept(Budget(tokens=1000))
    await bench.reserve()
    await bench.transitions.release(bench.run, 0)
    state = await bench.state()
    assert (state.spent["tokens"], state.lost["tokens"], state.reserved["tokens"]) == (150, 150, 0)


async def test_a_model_without_a_price_is_refused_quietly(bench: Bench) -> None:
    await bench.accept(Budget(usd=1, on_exceeded=OnExceeded.FAIL))
    assert await bench.reserve() == Refused("price", 0, OnExceeded.FAIL)
    assert await bench.events() == []


async def test_a_limit_that_is_reached_is_said_once_and_again_after_more(bench: Bench) -> None:
    await bench.accept(Budget(tokens=100))
    await bench.commit("a", Usage(input_tokens=80))
    assert await bench.reserve("b") == Refused("tokens", 80)
    assert await bench.reserve("c") == Refused("tokens", 80)
    await bench.journal.extend(bench.run, 0, "c/budget", {"tokens": 20, "model_calls": 5})
    await bench.journal.extend(bench.run, 0, "c/budget", {"tokens": 20, "model_calls": 5})
    assert (await bench.state()).limits == {"tokens": 120}
    assert await bench.reserve("c") == Refused("tokens", 66)
    said = ("budget.exceeded", {"limit": "tokens", "action": "incomplete"})
    assert await bench.events() == [("budget.warning", {"percent": 80}), said, said]


async def test_tool_calls_are_counted_by_themselves(bench: Bench) -> None:
    await bench.accept(Budget(tool_calls=1, usd=0.000001))
    plain = {"model_calls": 0, "input_tokens": 0, "least": 0, "most": 0, "tool_calls": 1}
    assert isinstance(await bench.reserve("a", **plain), Granted)
    await bench.commit("a", Usage(tool_calls=1))
    assert await bench.reserve("b", **plain) == Refused("tool_calls", 100)


async def test_time_counts_but_for_what_people_took_and_begins_anew_with_a_retry(
    bench: Bench,
) -> None:
    await bench.accept(Budget(seconds=3600))
    run = keys.run(bench.run.run_id)
    assert isinstance(await bench.reserve(), Granted)
    began = int(await bench.redis.hget(run, "started_at")) - HOUR_MS
    await bench.redis.hset(run, "started_at", began)
    assert await bench.reserve() == Refused("seconds", 0)
    assert (await bench.state()).spent["ms"] >= HOUR_MS
    await bench.redis.hset(run, "asked_ms", HOUR_MS // 2)
    assert isinstance(await bench.reserve(), Granted)
    await bench.redis.hset(run, mapping={"asked_ms": 0, "asking": 1, "asked_since": began + 1})
    assert isinstance(await bench.reserve(), Granted)
    await bench.redis.hset(run, "asking", 0)
    failed = Ending(Status.FAILED, Draft(event=RunCompleted()), error='{"code":"x"}')
    await bench.transitions.finish(bench.run, 0, failed)
    await bench.transitions.retry(
        bench.run.run_id, "default", int(await bench.redis.hget(run, "seq")), []
    )
    # So long it waits in the queue.
    await bench.redis.hset(run, "retried_at", began)
    assert (await bench.state()).spent["ms"] == 0
    await bench.claim()
    assert isinstance(await bench.reserve(), Granted)
    assert (await bench.state()).spent["ms"] < HOUR_MS


async def test_a_run_without_limits_has_no_state(bench: Bench) -> None:
    await bench.accept(Budget())
    assert await bench.ledger.of(bench.run.run_id) is None
    assert not bench.run.budgeted
