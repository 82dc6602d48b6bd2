"""The API with two small workflows, spoken to without a socket or through a real server."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis

from api_app.main import build_app
from api_app.server import make_server
from posthouse.ids import new_run_id
from posthouse.settings import Settings
from posthouse.storage import keys
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow

RUNS = "/api/v1/runs"


class EchoInput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1)
    times: int = 1


class EchoOutput(BaseModel):
    text: str


class ResearchInput(BaseModel):
    topic: str = Field(min_length=1)
    depth: Literal["standard", "deep"] = "standard"


@workflow("echo", version=2)
async def echo(ctx: RunContext, request: EchoInput) -> EchoOutput:
    """Says it again."""
    return EchoOutput(text=request.text * request.times)


@workflow("research")
async def research(ctx: RunContext, request: ResearchInput) -> EchoOutput:
    """Looks into a topic."""
    return EchoOutput(text=request.topic)


DEFINITIONS = {"echo": echo, "research": research}


class Scribe:
    """Writes one run by hand, in the form of the scripts."""

    def __init__(self, redis: Redis, run_id: str, seq: int = 0) -> None:
        self.redis = redis
        self.run_id = run_id
        self.seq = seq
        self.envelopes: list[bytes] = []

    async def write(
        self,
        kind: str,
        *,
        agent: str = "",
        step: str = "",
        data: str = "{}",
        publish: bool = True,
        record: Mapping[str, str | int] | None = None,
    ) -> None:
        self.seq += 1
        head = {"seq": self.seq, "type": kind, "run_id": self.run_id, "epoch": 1, "time": 5}
        head |= {name: text for name, text in (("agent", agent), ("step", step)) if text}
        text = json.dumps(head, separators=(",", ":"))[:-1] + f',"data":{data}}}'
        self.envelopes.append(text.encode())
        entry = {"type": kind, "time": 5, "epoch": 1, "run_id": self.run_id}
        async with self.redis.pipeline(transaction=True) as pipe:
            entry |= {"agent": agent, "step": step, "data": data}
            pipe.xadd(keys.events(self.run_id), entry, id=f"{self.seq}-0")
            pipe.hset(keys.run(self.run_id), mapping={**(record or {}), "seq": self.seq})
            if publish:
                pipe.publish(keys.events(self.run_id), text)
            await pipe.execute()

    async def record(self, **fields: str | int) -> None:
        whole = {
            "tenant": "default", "workflow": "echo", "version": 2, "status": "running", "epoch": 1,
            "input": '{"text":"hi","times":1}', "metadata": "{}", "seq": self.seq, "dispatch": 1,
            "root": self.run_id, "created_at": 1_700_000_000_000, "updated_at": 1_700_000_000_001,
        } | fields  # fmt: skip
        await self.redis.hset(keys.run(self.run_id), mapping=whole)
        for status in (None, whole["status"]):
            await self.redis.zadd(keys.index("default", status), {self.run_id: 0})

    async def end(self, status: str = "completed", **fields: str | int) -> None:
        """Both in one, as no script shows one without the other."""
        text = {"output": '{"text":"hi"}'} if status in ("completed", "incomplete") else {}
        ended = {"status": status, "ended_at": 1_700_000_000_009} | text | fields
        await self.write(f"run.{status}", record=ended)

    async def step(self, key: str, **outcome: object) -> None:
        whole = {"seq": self.seq, "epoch": 1, "time": 1_700_000_000_005} | outcome
        await self.redis.hset(keys.journal(self.run_id), key, json.dumps(whole))


@dataclass
class Message:
    """One message of an event stream; `comment` for a line that is none."""

    id: int | None = None
    event: str | None = None
    data: str | None = None
    retry: int | None = None
    comment: str | None = None

    @property
    def json(self) -> dict:
        return json.loads(self.data)


@dataclass
class Feed:
    """An open event stream."""

    response: httpx.Response
    lines: AsyncIterator[str] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = self.response.aiter_lines()

    async def next(self) -> Message | None:
        """The next message; None at the end."""
        message = Message()
        async with asyncio.timeout(10):
            async for line in self.lines:
                if not line:
                    return message
                name, _, value = line.partition(": ")
                match name:
                    case "id" | "retry":
                        setattr(message, name, int(value))
                    case "event" | "data":
                        assert getattr(message, name) is None
                        setattr(message, name, value)
                    case "":
                        message.comment = value
                    case _:
                        pytest.fail(f"no line of an event stream: {line!r}")
        return None

    async def messages(self, count: int | None = None) -> list[Message]:
        """So many messages with data, or all of them."""
        found: list[Message] = []
        while len(found) != count and (message := await self.next()) is not None:
            if message.data is not None:
                found.append(message)
        return found


@dataclass
class Api:
    """A real server."""

    app: FastAPI
    client: httpx.AsyncClient
    port: int

    @asynccontextmanager
    async def stream(self, path: str, **headers: str) -> AsyncIterator[Feed]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.stream("GET", path, headers=named) as response:
            assert response.status_code == 200, await response.aread()
            yield Feed(response)


@pytest.fixture
def settings(valkey_url: str) -> Settings:
    return Settings(redis_url=valkey_url, max_body_bytes=100_000, _env_file=None)


@pytest.fixture
async def app(settings: Settings, redis: Redis) -> AsyncIterator[FastAPI]:
    """The application, opened, without a server."""
    made = build_app(settings, DEFINITIONS)
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application without a server."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened


@pytest.fixture
def serve() -> Callable:
    """Serves an application on a free port of this loop, for as long as its context is open."""

    @asynccontextmanager
    async def serving(app: FastAPI) -> AsyncIterator[Api]:
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        port = listener.getsockname()[1]
        server = make_server(app, "127.0.0.1", port)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, timeout=10) as opened:
            assert (await opened.get("/health/live")).status_code == 200
            yield Api(app, opened, port)
        server.should_exit = True  # when nothing is connected any more, it has nothing to wait for
        async with asyncio.timeout(5):
            await task

    return serving


@pytest.fixture
async def api(settings: Settings, redis: Redis, serve: Callable) -> AsyncIterator[Api]:
    """A server on the shared Redis."""
    async with serve(build_app(settings, DEFINITIONS)) as serving:
        yield serving


@pytest.fixture
def build() -> Callable[..., FastAPI]:
    """Builds an application with the test's workflows."""
    return lambda settings, **options: build_app(settings, DEFINITIONS, **options)


@pytest.fixture
def new_scribe(redis: Redis) -> Callable[..., Scribe]:
    """Makes runs on the shared server, or goes on with one."""
    return lambda run_id="", seq=0: Scribe(redis, run_id or new_run_id(), seq)


@pytest.fixture
async def scribe(new_scribe: Callable[..., Scribe]) -> Scribe:
    """A run that is running."""
    made = new_scribe()
    await made.record()
    await made.write("run.created", data='{"workflow":"echo","version":2}')
    await made.write("run.started", data='{"worker":"w"}')
    return made
