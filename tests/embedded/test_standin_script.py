import asyncio
import json
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from posthouse.embedded.standin.serve import serve_standin

TASK: list[Any] = [{"role": "user", "content": "Topic: leases"}]
LIMIT = 10.0


class Stage:
    """A client of one stand-in, and its control routes."""

    def __init__(self, url: str, openai_client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
        self.url = url
        self.client = openai_client
        self.http = http

    async def tell(self, *behaviours: dict[str, object]) -> None:
        answer = await self.http.post("/control/script", json={"behaviours": behaviours})
        assert answer.status_code == 204

    async def ask(self) -> Any:
        return await self.client.chat.completions.create(model="m", messages=TASK)

    async def stream(self) -> Any:
        return await self.client.chat.completions.create(model="m", messages=TASK, stream=True)

    async def chunks(self) -> list[Any]:
        return [chunk async for chunk in await self.stream()]

    async def requests(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = (await self.http.get("/control/requests")).json()
        return listed


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with (
        serve_standin() as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
        httpx.AsyncClient(base_url=url) as http,
    ):
        yield Stage(url, client, http)


async def test_an_error_comes_as_often_as_it_was_told(stage: Stage) -> None:
    await stage.tell({"type": "status", "status": 429, "retry_after": 1, "times": 2})
    for _ in range(2):
        with pytest.raises(openai.RateLimitError) as limited:
            await stage.ask()
        assert limited.value.response.headers["retry-after"] == "1"
        assert limited.value.code == "rate_limit_exceeded"
    assert (await stage.ask()).choices[0].message.content
    assert [r["status"] for r in await stage.requests()] == [429, 429, 200]


async def test_behaviours_come_in_order_and_one_may_stay_for_ever(stage: Stage) -> None:
    await stage.tell(
        {"type": "reply", "text": "one"},
        {"type": "status", "status": 503},
        {"type": "reply", "text": "ever", "times": 0},
    )
    assert (await stage.ask()).choices[0].message.content == "one"
    with pytest.raises(openai.InternalServerError):
        await stage.ask()
    for _ in range(3):
        assert (await stage.ask()).choices[0].message.content == "ever"


async def test_a_truncated_stream_has_no_finish_reason(stage: Stage) -> None:
    await stage.tell({"type": "truncate", "after_chunks": 2})
    chunks = await stage.chunks()
    assert [bool(c.choices[0].delta.content) for c in chunks] == [False, True, True]
    assert {c.choices[0].finish_reason for c in chunks} == {None}
    assert (await stage.requests())[0]["finished"] is False


async def test_a_corrupt_chunk_is_no_json(stage: Stage) -> None:
    await stage.tell({"type": "corrupt"}, {"type": "corrupt"})
    with pytest.raises(json.JSONDecodeError):
        await stage.chunks()
    raw = await stage.http.post("/v1/chat/completions", json={"model": "m", "messages": TASK})
    with pytest.raises(json.JSONDecodeError):
        raw.json()


async def test_a_connection_breaks_in_the_middle(stage: Stage) -> None:
    await stage.tell({"type": "disconnect"}, {"type": "disconnect", "after_chunks": 0})
    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
        await stage.chunks()
    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
        await stage.ask()
    assert [r["finished"] for r in await stage.requests()] == [False, False]


async def test_a_delay(stage: Stage) -> None:
    await stage.tell({"type": "delay", "seconds": 0.2})
    started = monotonic()
    assert await stage.chunks()
    assert monotonic() - started >= 0.2


async def test_latency_holds_for_all_answers(stage: Stage) -> None:
    told = await stage.http.post("/control/latency", json={"latency_ms": 100, "token_ms": 1})
    assert told.status_code == 204
    for answer in (stage.chunks, stage.ask):
        started = monotonic()
        assert await answer()
        assert monotonic() - started >= 0.1


@pytest.mark.parametrize("tools", [False, True])
async def test_a_held_answer_waits_for_its_release(stage: Stage, tools: bool) -> None:
    await stage.tell({"type": "hold", "name": "door"})
    offered: Any = [{"type": "function", "function": {"name": "search_web"}}]
    stream = await stage.client.chat.completions.create(
        model="m", messages=TASK, stream=True, tools=offered if tools else openai.omit
    )
    chunks = aiter(stream)
    async with asyncio.timeout(LIMIT):
        assert (await anext(chunks)).choices[0].delta.role == "assistant"
        first = (await anext(chunks)).choices[0].delta
        assert first.tool_calls if tools else first.content
        rest = asyncio.ensure_future(_rest(chunks))
        record = (await stage.requests())[0]
        assert (record["held"], record["finished"]) == (True, False)
        assert not rest.done()
        await stage.http.post("/control/release", json={"name": "door"})
        assert (await rest)[-1].choices[0].finish_reason == ("tool_calls" if tools else "stop")
    assert (await stage.requests())[0]["finished"] is True


async def _rest(chunks: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in chunks]


async def test_a_release_may_come_first(stage: Stage) -> None:
    await stage.tell({"type": "hold", "name": "door", "times": 2})
    await stage.http.post("/control/release", json={"name": "door"})
    async with asyncio.timeout(LIMIT):
        assert await stage.chunks()
        assert await stage.ask()


async def test_a_reader_that_leaves_ends_its_answer(stage: Stage) -> None:
    await stage.tell({"type": "hold", "name": "door"})
    stream = await stage.stream()
    await anext(aiter(stream))
    await stream.close()
    async with asyncio.timeout(LIMIT):
        assert (await stage.ask()).choices[0].message.content
    assert (await stage.requests())[0]["finished"] is False


async def test_an_endless_loop_calls_whatever_is_offered(stage: Stage) -> None:
    await stage.tell({"type": "loop", "times": 0})
    messages, queries = list(TASK), []
    for _ in range(4):
        answer = await stage.client.chat.completions.create(model="m", messages=messages)
        call: Any = (answer.choices[0].message.tool_calls or [])[0]
        queries.append(call.function.arguments)
        messages.append(answer.choices[0].message.model_dump(exclude_none=True))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "{}"})
    assert len(set(queries)) == 4


async def test_told_tool_calls_and_refusals(stage: Stage) -> None:
    calls = [
        {"name": "never_offered", "arguments": "{no json"},
        {"name": "f", "arguments": {"a": 1}},
    ]
    await stage.tell({"type": "tool_calls", "calls": calls}, {"type": "refuse"})
    message = (await stage.ask()).choices[0].message
    told = [(c.function.name, c.function.arguments) for c in message.tool_calls]
    assert told == [("never_offered", "{no json"), ("f", '{"a":1}')]
    refusal = [c.choices[0].delta.refusal or "" for c in await stage.chunks()]
    assert "".join(refusal) == "I can't help with that."


async def test_requests_are_listed_with_a_fingerprint_of_their_messages(stage: Stage) -> None:
    await stage.ask()
    await stage.chunks()
    await stage.client.chat.completions.create(
        model="other", messages=[{"role": "user", "content": "else"}]
    )
    with pytest.raises(openai.AuthenticationError):
        await stage.client.with_options(api_key="sk-bad").chat.completions.create(
            model="m", messages=TASK
        )
    first, second, third, fourth = await stage.requests()
    assert [r["n"] for r in (first, second, third, fourth)] == [1, 2, 3, 4]
    assert first["fingerprint"] == second["fingerprint"] != third["fingerprint"]
    assert (first["stream"], second["stream"]) == (False, True)
    assert (third["model"], third["status"], third["finished"]) == ("other", 200, True)
    assert (fourth["status"], fourth["finished"]) == (401, True)


async def test_a_reset_forgets_everything(stage: Stage) -> None:
    await stage.tell(
        {"type": "hold", "name": "door"}, {"type": "status", "status": 500, "times": 0}
    )
    held = aiter(await stage.stream())
    await anext(held)
    await stage.http.post("/control/latency", json={"latency_ms": 50_000})
    assert (await stage.http.delete("/control")).status_code == 204
    assert await stage.requests() == []
    async with asyncio.timeout(LIMIT):
        assert (await _rest(held))[-1].choices[0].finish_reason == "stop"
        assert (await stage.ask()).choices[0].message.content


async def test_what_has_to_be_a_list_is_called_one(stage: Stage) -> None:
    answer = await stage.http.post("/control/script", json={"behaviours": {"type": "loop"}})
    said = "Invalid value for 'behaviours': Input should be a valid list."
    assert answer.json()["error"]["message"] == said
    calls = {"type": "tool_calls", "calls": []}
    answer = await stage.http.post("/control/script", json={"behaviours": [calls]})
    assert ": List should have at least 1 item" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("script", {}),
        ("script", {"behaviours": [{"type": "unknown"}]}),
        ("script", {"behaviours": [{"type": "status", "status": 200}]}),
        ("script", {"behaviours": [{"type": "delay", "seconds": 1, "seconsd": 2}]}),
        ("release", {}),
        ("latency", {"latency_ms": -1}),
    ],
)
async def test_a_wrong_word_to_control_is_refused(
    stage: Stage, path: str, body: dict[str, object]
) -> None:
    answer = await stage.http.post(f"/control/{path}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
