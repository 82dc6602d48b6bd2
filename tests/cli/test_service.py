"""Following a run over connections that break."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import orjson
import pytest

from posthouse.cli.service import Envelope, Service, ServiceFailed
from posthouse.events.types import RunCompleted, RunCreated

RUN = "01KAXQ9Z5T3V8W2Y4Z6B8D0F1H"
LIMIT_SECONDS = 20.0


def event(seq: int, kind: str, data: dict[str, object]) -> bytes:
    body = {"seq": seq, "type": kind, "run_id": RUN, "epoch": 1, "time": 1, "data": data}
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (seq, kind.encode(), orjson.dumps(body))


FIRST = event(1, "run.created", {"workflow": "research", "version": 1})
SECOND = event(2, "run.started", {"worker": "w"})
UNKNOWN = event(3, "moon.risen", {"phase": "full"})
LAST = event(4, "run.completed", {})


class Script:
    """Answers to requests for a stream, one connection each; None hangs up before an answer."""

    def __init__(self, *answers: tuple[int, bytes] | None) -> None:
        self._answers = list(answers)
        self.asked_after: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked_after.append(request.headers.get("Last-Event-ID"))
        answer = self._answers.pop(0)
        if answer is None:
            raise httpx.ConnectError("gone")
        status, body = answer
        return httpx.Response(status, content=body)


@asynccontextmanager
async def service(script: Script) -> AsyncIterator[Service]:
    transport = httpx.MockTransport(script)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        yield Service(http)


async def followed(script: Script) -> Sequence[Envelope]:
    async with service(script) as api, asyncio.timeout(LIMIT_SECONDS):
        return [envelope async for envelope in api.follow(RUN)]


async def test_each_event_comes_once_over_broken_connections() -> None:
    script = Script(
        (200, FIRST + SECOND),
        None,
        (503, b""),
        (200, UNKNOWN[:20]),
        (200, UNKNOWN + LAST + b"never read"),
    )
    envelopes = await followed(script)
    assert [envelope.seq for envelope in envelopes] == [1, 2, 3, 4]
    assert script.asked_after == [None, "2", "2", "2", "2"]
    assert envelopes[0].event == RunCreated(workflow="research", version=1)
    assert envelopes[2].event is None
    assert envelopes[3].event == RunCompleted()


async def test_a_hole_is_filled_from_the_log() -> None:
    script = Script((200, FIRST + UNKNOWN), (200, SECOND + UNKNOWN + LAST))
    assert [envelope.seq for envelope in await followed(script)] == [1, 2, 3, 4]
    assert script.asked_after == [None, "1"]


async def test_deltas_have_no_seq_and_pass() -> None:
    body = {"type": "message.delta", "run_id": RUN, "data": {"offset": 0, "text": "a"}}
    delta = b"event: message.delta\ndata: %b\n\n" % orjson.dumps(body)
    script = Script((200, FIRST + delta + SECOND + UNKNOWN + LAST))
    assert [envelope.seq for envelope in await followed(script)] == [1, None, 2, 3, 4]


async def test_an_end_without_a_last_event_is_said() -> None:
    with pytest.raises(ServiceFailed, match="the run ended"):
        await followed(Script((200, FIRST), (204, b"")))


async def test_a_refusal_is_not_tried_again() -> None:
    problem = orjson.dumps({"title": "Not found", "detail": "there is no such run"})
    with pytest.raises(ServiceFailed, match="the API answered 404: there is no such run"):
        await followed(Script((404, problem)))


async def test_submit_gives_the_id_of_the_run() -> None:
    def accept(request: httpx.Request) -> httpx.Response:
        assert orjson.loads(request.content) == {"workflow": "research", "input": {"topic": "t"}}
        return httpx.Response(202, headers={"Location": f"/api/v1/runs/{RUN}"}, json={})

    transport = httpx.MockTransport(accept)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        assert await Service(http).submit("research", {"topic": "t"}) == RUN
