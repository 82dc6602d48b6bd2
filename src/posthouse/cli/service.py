"""The running service as the command sees it: submit a run, follow its events, read its record."""

import contextlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from posthouse import clock
from posthouse.cli.sse import EventParser
from posthouse.errors import PosthouseError
from posthouse.events.types import EVENT, TERMINAL_TYPES, Event
from posthouse.runs.model import RunError, Status, UsageTotals

RECONNECT_SECONDS = 0.3
PATIENCE_SECONDS = 60.0


class ServiceFailed(PosthouseError):
    """The service refused a request, or was away for too long."""


class _Away(Exception):
    """The service is not there at the moment."""


class Envelope(BaseModel):
    """An event as it was sent; one without a seq is in no log."""

    seq: int | None = None
    type: str
    run_id: str
    agent: str = ""
    step: str = ""
    data: dict[str, Any]

    @property
    def event(self) -> Event | None:
        """The event itself; None when this version does not know its type."""
        try:
            return EVENT.validate_python({**self.data, "type": self.type})
        except ValidationError:
            return None


class Source(BaseModel):
    """A document that was read, and the step that read it."""

    address: str
    title: str = ""
    step: str = ""


class Subtask(BaseModel):
    """A node of a plan, and what became of it."""

    id: str
    agent: str
    state: str
    depends_on: tuple[str, ...] = ()


class Plan(BaseModel):
    """The plan of a run as it stands."""

    nodes: tuple[Subtask, ...]


class Answered(BaseModel):
    """What an orchestrator gives."""

    answer: str
    sources: tuple[Source, ...] = ()


class Orchestration(BaseModel):
    """How an orchestrator ended."""

    status: Status
    output: Answered | None = None
    error: RunError | None = None
    usage: UsageTotals = UsageTotals()


class Spent(BaseModel):
    """A line of what a run took; `usd` lacks the calls of models without a known price."""

    agent: str | None = None
    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: str = "0"
    usd_complete: bool = True

    @property
    def money(self) -> str:
        """Dollars, or that nobody knows."""
        return f"{float(self.usd):.6f}" if self.usd_complete else "unknown"


class Usage(BaseModel):
    """What a run and all below it took."""

    total: Spent
    by_agent: tuple[Spent, ...] = ()


class Report(BaseModel):
    """What a research run gives."""

    report: str
    sources: tuple[Source, ...] = ()


class Outcome(BaseModel):
    """How a run ended."""

    status: Status
    output: Report | None = None
    error: RunError | None = None
    usage: UsageTotals = UsageTotals()


class Service:
    """The API behind a client whose base URL is the API's."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def submit(self, workflow: str, request: Mapping[str, str | bool]) -> str:
        """Starts a run and gives its id. Raises ServiceFailed."""
        body = {"workflow": workflow, "input": dict(request)}
        answer = await self._ask("POST", "/api/v1/runs", json=body)
        return answer.headers["Location"].rstrip("/").rpartition("/")[2]

    async def outcome(self, run_id: str) -> Outcome:
        """The record of a run that has ended. Raises ServiceFailed."""
        answer = await self._ask("GET", f"/api/v1/runs/{run_id}")
        return Outcome.model_validate_json(answer.content)

    async def orchestration(self, run_id: str) -> Orchestration:
        """The record of an orchestrator that has ended. Raises ServiceFailed."""
        answer = await self._ask("GET", f"/api/v1/runs/{run_id}")
        return Orchestration.model_validate_json(answer.content)

    async def plan(self, run_id: str) -> Plan:
        """The plan of a run. Raises ServiceFailed."""
        answer = await self._ask("GET", f"/api/v1/runs/{run_id}/plan")
        return Plan.model_validate_json(answer.content)

    async def usage(self, run_id: str) -> Usage:
        """What a run took. Raises ServiceFailed."""
        answer = await self._ask("GET", f"/api/v1/runs/{run_id}/usage")
        return Usage.model_validate_json(answer.content)

    async def approve(self, input_id: str) -> None:
        """Says yes to what a person is asked. Raises ServiceFailed."""
        await self._ask("POST", f"/api/v1/inputs/{input_id}", json={"decision": "approve"})

    async def _ask(self, method: str, path: str, json: object = None) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, json=json)
        except httpx.TransportError as error:
            raise ServiceFailed(f"the API did not answer: {error!r}") from None
        if not answer.is_success:
            raise ServiceFailed(_refusal(answer))
        return answer

    async def follow(self, run_id: str) -> AsyncGenerator[Envelope, None]:
        """Every event of a run once and in order, to its end, over lost connections.

        Raises ServiceFailed when the service refuses, or is away for a minute.
        """
        last, heard = 0, clock.monotonic()
        while True:
            with contextlib.suppress(httpx.TransportError, _Away):
                async with aclosing(self._connected(run_id, last)) as connection:
                    async for envelope in connection:
                        heard = clock.monotonic()
                        if envelope.seq is not None:
                            if envelope.seq != last + 1:
                                break  # a hole: what is missing is in the log
                            last = envelope.seq
                        yield envelope
                        if envelope.run_id == run_id and envelope.type in TERMINAL_TYPES:
                            return
            if clock.monotonic() - heard > PATIENCE_SECONDS:
                raise ServiceFailed(f"no event came after number {last}")
            await clock.sleep(RECONNECT_SECONDS)

    async def _connected(self, run_id: str, last: int) -> AsyncGenerator[Envelope, None]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(last)} if last else {})
        path = f"/api/v1/runs/{run_id}/stream"
        async with self._http.stream("GET", path, headers=headers) as answer:
            if answer.status_code == httpx.codes.NO_CONTENT:
                raise ServiceFailed("the run ended, and its last event was not sent")
            if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                raise _Away
            if answer.status_code != httpx.codes.OK:
                await answer.aread()
                raise ServiceFailed(_refusal(answer))
            parser = EventParser()
            async for chunk in answer.aiter_bytes():
                for sent in parser.feed(chunk):
                    yield Envelope.model_validate_json(sent.data)


class _Problem(BaseModel):
    title: str = ""
    detail: str = ""


def _refusal(answer: httpx.Response) -> str:
    """What a refused request is told, in one line."""
    try:
        problem = _Problem.model_validate_json(answer.content)
    except ValidationError:
        problem = _Problem()
    words = problem.detail or problem.title or answer.reason_phrase
    return f"the API answered {answer.status_code}: {words}"
