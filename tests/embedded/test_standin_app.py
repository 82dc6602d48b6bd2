import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from posthouse.embedded.standin.serve import serve_standin

TASK: list[Any] = [{"role": "user", "content": "Topic: leases and fences\nDepth: deep"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string"}},
                "required": [argument],
            },
        },
    }
    for name, argument in (("search_web", "query"), ("extract_content", "url"))
]


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serve_standin() as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-any", max_retries=0) as client:
        yield client


async def post(url: str, body: object) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(f"{url}/v1/chat/completions", json=body)


async def test_a_text_answer_in_one_piece(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="any-name", messages=TASK)
    choice = answer.choices[0]
    assert answer.model == "any-name"
    assert choice.finish_reason == "stop"
    assert choice.message.content is not None
    assert "not a language model" in choice.message.content
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == -(-len(TASK[0]["content"]) // 4)
    assert answer.usage.completion_tokens == -(-len(choice.message.content) // 4)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_a_text_answer_as_a_stream_is_the_same(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="m", messages=TASK)
    stream = await client.chat.completions.create(
        model="m", messages=TASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1
    assert len(chunks) > 6


async def test_the_wire_is_that_of_server_sent_events(url: str) -> None:
    answer = await post(url, {"model": "m", "messages": TASK, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert '"usage"' not in answer.text


async def test_parallel_tool_calls_stream_as_deltas(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="m", messages=TASK, tools=TOOLS, stream_options={"include_usage": True}
    ) as stream:
        final = await stream.get_final_completion()
    whole = await client.chat.completions.create(model="m", messages=TASK, tools=TOOLS)
    streamed = final.choices[0].message.tool_calls
    at_once = whole.choices[0].message.tool_calls
    assert streamed is not None
    assert at_once is not None
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"
    assert [(c.id, c.function.arguments) for c in streamed] == [
        (c.id, c.function.arguments) for c in at_once if c.type == "function"
    ]
    assert len(streamed) == 2


async def test_tool_choice_names_the_tool(client: AsyncOpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "extract_content"}}
    answer = await client.chat.completions.create(
        model="m", messages=TASK, tools=TOOLS, tool_choice=named
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [c.function.name for c in calls if c.type == "function"] == ["extract_content"]
    none = await client.chat.completions.create(
        model="m", messages=TASK, tools=TOOLS, tool_choice="none"
    )
    assert none.choices[0].message.content


class Step(BaseModel):
    name: str
    needs: list[str]


class Plan(BaseModel):
    goal: str
    steps: list[Step]
    confident: bool


async def test_structured_output_fits_its_model(client: AsyncOpenAI) -> None:
    first = await client.chat.completions.parse(model="m", messages=TASK, response_format=Plan)
    again = await client.chat.completions.parse(model="m", messages=TASK, response_format=Plan)
    assert isinstance(first.choices[0].message.parsed, Plan)
    assert first.choices[0].message.content == again.choices[0].message.content


async def test_an_answer_is_cut_at_the_token_limit(client: AsyncOpenAI) -> None:
    cut = await client.chat.completions.create(model="m", messages=TASK, max_completion_tokens=5)
    assert cut.choices[0].finish_reason == "length"
    assert cut.choices[0].message.content is not None
    assert len(cut.choices[0].message.content) == 20
    calls = await client.chat.completions.create(
        model="m", messages=TASK, tools=TOOLS, max_tokens=5
    )
    assert calls.choices[0].finish_reason == "length"
    assert calls.usage is not None
    assert calls.usage.completion_tokens <= 5


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["stand-in"]
    assert (await client.models.retrieve("whatever/else")).id == "whatever/else"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("missing-model")


async def test_embeddings_bring_alike_texts_together(client: AsyncOpenAI) -> None:
    texts = ["a lease of a run", "runs and their leases", "horses eat hay"]
    answer = await client.embeddings.create(model="m", input=texts)
    first, near, far = (item.embedding for item in answer.data)
    assert _dot(first, first) == pytest.approx(1, abs=1e-5)
    assert _dot(first, near) > _dot(first, far) + 0.5
    floats = await client.embeddings.create(
        model="m", input=texts[0], dimensions=32, encoding_format="float"
    )
    assert len(floats.data[0].embedding) == 32
    assert floats.usage.prompt_tokens == 4


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_a_bad_key_and_a_missing_model(url: str, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        await client.with_options(api_key="sk-bad-1").chat.completions.create(
            model="m", messages=TASK
        )
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="missing-model", messages=TASK)
    assert missing.value.code == "model_not_found"


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "x"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"model": None}, "model"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages.0"),
        ({"messages": [*TASK, ANSWER]}, "messages.1"),
        ({"messages": [*TASK, ASKED]}, "messages"),
        ({"messages": [*TASK, ASKED, *TASK, ANSWER]}, "messages"),
        ({"messages": [*TASK, ASKED, ANSWER, ANSWER]}, "messages.3"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.assistant"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": []}, "tools"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"temperature": 3}, "temperature"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"n": 2}, "n"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    url: str, change: dict[str, object], param: str
) -> None:
    answer = await post(url, {"model": "m", "messages": TASK} | change)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["code"]
    assert error["message"]
    assert error["param"] == param


async def test_what_is_no_json_and_no_route(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        broken = await http.post("/v1/chat/completions", content=b"{")
        listed = await http.post("/v1/chat/completions", content=b"[]")
        nowhere = await http.get("/v2/anything")
        wrong = await http.get("/v1/chat/completions")
    assert [r.status_code for r in (broken, listed, nowhere, wrong)] == [400, 400, 404, 405]
    codes = [r.json()["error"]["code"] for r in (broken, nowhere, wrong)]
    assert codes == ["invalid_json", "not_found", "method_not_allowed"]


async def test_two_stand_ins_share_nothing(url: str) -> None:
    async with serve_standin() as other, httpx.AsyncClient() as http:
        await post(url, {"model": "m", "messages": TASK})
        assert len((await http.get(f"{url}/control/requests")).json()) == 1
        assert (await http.get(f"{other}/control/requests")).json() == []


async def test_many_at_once(client: AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(client.chat.completions.create(model="m", messages=TASK) for _ in range(40))
    )
    assert len({answer.id for answer in answers}) == 40
    assert len({answer.choices[0].message.content for answer in answers}) == 1
