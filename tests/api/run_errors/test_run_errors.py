"""Each row of the error table through the HTTP API; of what a provider writes, a caller sees nothing."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from posthouse.errors import LimitReached
from posthouse.llm.breaker import BreakerPolicy
from posthouse.testing.endpoint import Reply, answered, called, chunk, refused, said, streamed
from posthouse.tools.define import tool
from posthouse.tools.model import Source, ToolAnswer
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow

CANARY = "CANARY-provider-text-7f3a"
NOISE = {"Server": CANARY, "X-Request-Id": CANARY, "X-Debug": CANARY}
TRIES = 3


def no(status: int, code: str = CANARY, **headers: str) -> Reply:
    """An error of the provider, with its words in every place that it has."""
    named = NOISE | {name.replace("_", "-"): value for name, value in headers.items()}
    return refused(status, code, message=CANARY, headers=named, reason=CANARY)


def page(status: int) -> Reply:
    text = f"<p>{CANARY}</p>".encode()
    return answered(status, text, NOISE | {"Content-Type": "text/html"}, reason=CANARY)


def error_in_stream(kind: str, code: str | None) -> Reply:
    error: Any = {"error": {"message": CANARY, "type": kind, "code": code}}
    return streamed(BEGINNING, error, headers=NOISE)


def leaks(seen: Any) -> list[str]:
    return [place for place, text in seen.texts.items() if CANARY in text]


BUSY = "The model provider has limited the rate of requests for too long."
BROKEN = "The model provider had an error."
LOST = "The connection to the model failed."
LATE = "The model took too long to answer."

BEGINNING = chunk(content="It begins")
CUT = streamed(BEGINNING, whole=False, headers=NOISE)

PASSES = {
    "500": (no(500, Retry_After=CANARY), "server_error", BROKEN),
    "502 of a proxy": (page(502), "server_error", BROKEN),
    "503": (no(503), "server_error", BROKEN),
    "error in the stream": (error_in_stream("server_error", CANARY), "server_error", BROKEN),
    "408": (no(408), "timeout", LATE),
    "silence": (Reply(silent=True), "timeout", LATE),
    "silence after a piece": (Reply(CUT.raw, silent=True), "timeout", LATE),
    "no answer": (Reply(), "connection", LOST),
    "disconnect": (CUT, "connection", LOST),
    "truncated": (streamed(BEGINNING, "[DONE]", headers=NOISE), "connection", LOST),
    "corrupt chunk": (streamed(BEGINNING, f'{{"a": [{CANARY}', headers=NOISE), "connection", LOST),
    "a page": (page(200), "connection", LOST),
}


@pytest.mark.parametrize("row", PASSES)
async def test_what_passes_is_tried_again_and_then_may_be_tried_later(bench, row):
    reply, code, message = PASSES[row]
    seen = await bench.run(reply, silence_seconds=0.15 if reply.silent else 5.0)
    seen.failed_with(code, message, retryable=True)
    retries = [(r["code"], r["attempt"]) for r in seen.data("model.retrying")]
    assert retries == [(code, n) for n in range(1, TRIES)]
    assert seen.asked == TRIES
    assert leaks(seen) == []


async def test_an_endpoint_that_is_not_there(bench):
    seen = await bench.run()
    seen.failed_with("connection", LOST, retryable=True)
    assert len(seen.data("model.retrying")) == TRIES - 1


LIMITED = {
    "429": no(429),
    "429 in the stream": error_in_stream("rate_limit_error", None),
    "429 and when to come back": no(429, Retry_After="3600"),
}


@pytest.mark.parametrize("row", LIMITED)
async def test_a_limit_of_the_rate_is_no_try_and_ends_a_run_only_at_its_bound(bench, row):
    seen = await bench.run(LIMITED[row], model_wait_seconds=0)
    seen.failed_with("rate_limit", BUSY, retryable=True)
    assert (seen.asked, seen.slept, seen.data("model.retrying")) == (1, [], [])
    assert leaks(seen) == []


async def test_a_short_wait_that_the_provider_asks_for_is_waited(bench):
    seen = await bench.run(no(429, Retry_After_Ms="200"), said("# Posts"))
    assert (seen.record["status"], seen.record["error"]) == ("completed", None)
    [retry] = seen.data("model.retrying")
    assert (retry["code"], 190 <= retry["delay_ms"] <= 300) == ("rate_limit", True)
    assert seen.data("run.waiting") == []
    assert leaks(seen) == []


async def test_refusals_for_the_rate_are_counted_by_themselves(bench):
    busy = no(429, Retry_After_Ms="200")
    seen = await bench.run(CUT, no(500), busy, CUT, said("# Posts"))
    assert (seen.record["status"], seen.record["error"]) == ("completed", None)
    retries = [(r["code"], r["attempt"]) for r in seen.data("model.retrying")]
    assert retries == [
        ("connection", 1), ("server_error", 2), ("rate_limit", 1), ("connection", 1),
    ]  # fmt: skip
    assert leaks(seen) == []


async def test_one_fault_costs_one_try(bench):
    seen = await bench.run(CUT, no(500), said("# Posts"))
    assert (seen.record["status"], seen.record["error"]) == ("completed", None)
    assert [r["code"] for r in seen.data("model.retrying")] == ["connection", "server_error"]
    assert leaks(seen) == []


AT_ONCE = BreakerPolicy(failures=1, span=0.0, first=0.1)
DOWN = "The model's endpoint has been down for too long."


async def test_an_open_breaker_is_waited_for_and_takes_no_try(bench):
    seen = await bench.run(no(500), no(503), said("# Posts"), breaker=AT_ONCE)
    assert (seen.record["status"], seen.record["error"]) == ("completed", None)
    assert [w["wait_reason"] for w in seen.data("run.waiting")] == ["model"] * 2
    assert [r["attempt"] for r in seen.data("model.retrying")] == [1]
    assert seen.record["usage"]["model_calls"] == 1
    assert leaks(seen) == []


async def test_an_endpoint_that_is_down_for_too_long(bench):
    seen = await bench.run(no(500), breaker=AT_ONCE, model_wait_seconds=0)
    seen.failed_with("connection", DOWN, retryable=True)
    assert (seen.asked, seen.data("run.waiting")) == (1, [])
    assert leaks(seen) == []


INVALID = "The model provider refused the request as invalid."
LONG = "The conversation is longer than the model can read."
QUOTA = "The quota at the model provider is used up."
DECLINED = "The model declined to answer."

STAYS = {
    "400": (no(400), "fatal", INVALID),
    "401": (no(401), "fatal", "The model provider refused the API key."),
    "402": (no(402), "fatal", "The account at the model provider has no credit left."),
    "403": (no(403), "fatal", "The API key may not use this model."),
    "404": (no(404), "fatal", "The model provider does not know this model."),
    "413": (no(413), "fatal", LONG),
    "422": (no(422), "fatal", INVALID),
    "context length": (no(400, "context_length_exceeded"), "fatal", LONG),
    "quota": (no(429, "insufficient_quota"), "fatal", QUOTA),
    "filter": (no(400, "content_filter"), "content_refused", DECLINED),
}


@pytest.mark.parametrize("row", STAYS)
async def test_what_stays_fails_at_once(bench, row):
    reply, code, message = STAYS[row]
    seen = await bench.run(reply)
    seen.failed_with(code, message, retryable=False)
    assert (seen.asked, seen.data("model.retrying")) == (1, [])
    assert leaks(seen) == []
    assert CANARY in seen.log, "whoever runs the service reads what the provider said"


class Nothing(BaseModel):
    pass


class Made(BaseModel):
    text: str


async def broken() -> str:
    raise ValueError(CANARY)


@workflow("step-raises")
async def step_raises(ctx: RunContext, request: Nothing) -> Made:
    """Has a step that raises."""
    return Made(text=await ctx.step("broken", broken))


@workflow("raises")
async def raises(ctx: RunContext, request: Nothing) -> Made:
    """Raises."""
    raise ValueError(CANARY)


@workflow("huge")
async def huge(ctx: RunContext, request: Nothing) -> Made:
    """Has an output that is too large."""
    return Made(text=CANARY * 10_000)


@workflow("endless")
async def endless(ctx: RunContext, request: Nothing) -> Made:
    """Reaches a bound."""
    raise LimitReached("enough")


async def test_a_run_that_a_bound_stopped_without_an_output_says_why_everywhere(bench):
    seen = await bench.run(flow=endless)
    error = {"code": "max_iterations", "message": "enough", "retryable": False, "status": 422}
    assert (seen.record["status"], seen.record["error"]) == ("incomplete", error)
    assert (seen.tutorial["status"], seen.tutorial["output"]) == ("completed", None)
    assert seen.tutorial["error"] == {"error": "max_iterations"} | error


@pytest.mark.parametrize(
    ("flow", "code", "message"),
    [
        (step_raises, "tool_failed", "step 'broken' failed: ValueError"),
        (raises, "fatal", "the workflow failed with an internal error"),
        (huge, "fatal", "the output is larger than 100000 bytes"),
    ],
    ids=lambda part: getattr(part, "name", None),
)
async def test_a_workflow_that_breaks(bench, flow, code, message):
    seen = await bench.run(flow=flow)
    seen.failed_with(code, message, retryable=False)
    assert leaks(seen) == []


@tool()
async def look(place: int) -> ToolAnswer:
    """Looks.

    Args:
        place: Where.
    """
    return ToolAnswer(text=f"seen {place}", sources=(Source(address=f"doc://{place}", title="t"),))


@tool()
async def burst(number: int) -> str:
    """Breaks.

    Args:
        number: Any.
    """
    raise RuntimeError(CANARY)


def looks(number: int) -> Reply:
    return called("look", json.dumps({"place": number}), headers=NOISE)


def bursts(number: int) -> Reply:
    return called("burst", json.dumps({"number": number}))


LIMIT = "The researcher reached its limit of turns before it had finished."
TIME = "The researcher's time was up before it had finished."


async def test_the_limit_of_turns(bench):
    seen = await bench.run(*map(looks, range(8)), tools=[look])
    seen.stopped_with("max_iterations", LIMIT)
    assert len(seen.data("turn.completed")) == 8
    assert leaks(seen) == []


async def test_the_time_of_an_agent(bench):
    seen = await bench.run(looks(1), Reply(silent=True), tools=[look], agent_seconds=0.5)
    seen.stopped_with("timeout", TIME)
    assert len(seen.record["output"]["sources"]) == 1
    assert leaks(seen) == []


async def test_a_tool_that_breaks_is_an_answer(bench):
    seen = await bench.run(bursts(1), bursts(2), said("# Posts"), tools=[burst])
    assert (seen.record["status"], seen.record["error"]) == ("completed", None)
    assert [f["error"] for f in seen.data("tool.failed")] == ["unexpected"] * 2
    assert leaks(seen) == []


CIRCLES = "The researcher went in circles and was stopped before it had finished."
USELESS = "The model's answers were of no use, also after it was told so."
NOT_MENDED = "The researcher's model gave nothing of use, also after it was told so."


async def test_a_call_that_is_made_for_ever(bench):
    seen = await bench.run(looks(1), tools=[look])
    seen.stopped_with("loop_detected", CIRCLES)
    assert ladder(seen) == [("repeated_call", rung) for rung in ("nudged", "blocked", "stopped")]
    assert len(seen.record["output"]["sources"]) == 1
    assert leaks(seen) == []


async def test_a_tool_that_breaks_for_ever(bench):
    seen = await bench.run(*(bursts(n) for n in range(8)), tools=[burst])
    seen.stopped_with("loop_detected", CIRCLES)
    assert ladder(seen) == [("failing_calls", rung) for rung in ("nudged", "blocked", "stopped")]
    assert leaks(seen) == []


def ladder(seen: Any) -> list[tuple[str, str]]:
    return [(stall["pattern"], stall["action"]) for stall in seen.data("stall.detected")]


MISTAKES = {
    "no JSON": called("look", '{"place": ', headers=NOISE),
    "malformed arguments": called("look", '{"place": "there"}', headers=NOISE),
    "an unknown tool": called("fly", "{}", headers=NOISE),
}


@pytest.mark.parametrize("row", MISTAKES)
async def test_a_mistake_that_is_made_for_ever(bench, row):
    seen = await bench.run(MISTAKES[row], tools=[look])
    seen.failed_with("invalid_output", USELESS, retryable=False)
    assert len(seen.data("tool.failed")) == TRIES
    assert (seen.asked, leaks(seen)) == (TRIES + 1, [])


async def test_what_was_found_before_a_mistake_is_kept(bench):
    seen = await bench.run(looks(1), MISTAKES["no JSON"], tools=[look])
    seen.stopped_with("invalid_output", NOT_MENDED)
    assert len(seen.record["output"]["sources"]) == 1


async def test_empty_answers(bench):
    seen = await bench.run(said("", headers=NOISE))
    seen.failed_with("invalid_output", USELESS, retryable=False)
    assert (seen.asked, len(seen.data("turn.completed"))) == (TRIES, TRIES)
    assert leaks(seen) == []


REFUSED = streamed(chunk(refusal=CANARY), chunk("stop"), headers=NOISE)


async def test_a_refusal_is_asked_about_once(bench):
    seen = await bench.run(REFUSED)
    seen.failed_with("content_refused", DECLINED, retryable=False)
    assert (seen.asked, leaks(seen)) == (2, [])


async def test_a_refusal_that_is_taken_back(bench):
    seen = await bench.run(REFUSED, said("# Posts"))
    assert (seen.record["status"], seen.record["error"]) == ("completed", None)
    assert leaks(seen) == []


async def test_a_filter_that_cuts_an_answer(bench):
    seen = await bench.run(said("It beg", finish="content_filter", headers=NOISE))
    seen.failed_with("content_refused", DECLINED, retryable=False)
    assert (seen.asked, leaks(seen)) == (1, [])


async def test_a_reason_that_nobody_knows(bench):
    seen = await bench.run(said("# Posts", finish=CANARY))
    assert (seen.record["status"], leaks(seen)) == ("completed", [])
