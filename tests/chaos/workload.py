"""Clients of the service: they submit errands until they are taken in, wait for them, and read their streams."""

import asyncio
import contextlib
import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from posthouse.cli.sse import EventParser
from tests.chaos.households import BUDGET, MORE, Errand, Household, way_of
from tests.chaos.recorders import Order

API = "/api/v1"
# A connection that ends as it begins can meet the client before it has looked at its socket: an AttributeError.
GONE = (httpx.TransportError, AttributeError)


@dataclass
class Reading:
    """What one reader of a stream saw, over all its connections."""

    run: str
    seen: list[tuple[int, str, str]] = field(default_factory=list)
    connections: int = 0
    told_over: bool = False


@dataclass
class Accepted:
    """A run that was answered with 202, what was ordered, how it must end, and what a client saw of its end."""

    run: str
    order: Errand
    at: float
    wanted: str = "completed"
    ended: dict[str, Any] | None = None
    reading: Reading | None = None


@dataclass
class Answers:
    """How the API answered: the worst that may be is 503 as a problem, or for a while 429 when Redis is full."""

    counts: dict[int, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    slowest_503: float = 0.0
    in_flight: int = 0
    may_shed_until: float = 0.0

    def take(self, answer: httpx.Response, seconds: float) -> None:
        """Counts one answer."""
        self.counts[answer.status_code] = self.counts.get(answer.status_code, 0) + 1
        if answer.status_code == 503:
            self.slowest_503 = max(self.slowest_503, seconds)
        problem = answer.headers.get("content-type", "").startswith("application/problem+json")
        shed = answer.status_code == 429 and time.monotonic() < self.may_shed_until
        refused = problem and (answer.status_code == 503 or shed)
        if answer.status_code not in (200, 202, 204) and not refused:
            self.bad.append(f"{answer.request.method} {answer.request.url}: {answer.status_code}")


def said_to(asked: dict[str, Any]) -> dict[str, Any]:
    """What a person says to a question of the inbox."""
    if asked["kind"] == "budget":
        return {"decision": "approve", "value": MORE}
    return {"value": way_of(asked["question"])}


class Clients:
    """So many clients, each with one errand at a time, until `stop`."""

    def __init__(
        self,
        url: str,
        seed: int,
        order: Order,
        *,
        readers: float = 0.3,
        patience: float = 120.0,
        trees: float = 0.0,
    ) -> None:
        limits = httpx.Limits(max_connections=500)
        timeout = httpx.Timeout(10, read=40, pool=60)
        self._http = httpx.AsyncClient(
            base_url=url, trust_env=False, timeout=timeout, limits=limits
        )
        self._random = random.Random(seed)
        self._order = order
        self._readers = readers
        self._patience = patience
        self._trees = trees
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._answering: asyncio.Task[None] | None = None
        self._started = 0
        self._seed = seed
        self.accepted: list[Accepted] = []
        self.answers = Answers()
        self.stuck: list[str] = []

    def start(self, clients: int) -> None:
        """Begins."""
        self._tasks = [asyncio.create_task(self._client()) for _ in range(clients)]
        if self._trees:
            self._answering = asyncio.create_task(self._answer_questions())

    async def stop(self) -> None:
        """Submits nothing more; returns when everything that was taken in has ended and was read."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Lets go of everything."""
        tasks = [*self._tasks, *([self._answering] if self._answering else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    @property
    def live(self) -> list[str]:
        """The runs that are not known to have ended."""
        return [one.run for one in self.accepted if one.ended is None]

    async def _client(self) -> None:
        while not self._stopping.is_set():
            self._started += 1
            seed = self._seed * 1_000_000 + self._started
            if self._random.random() < self._trees:
                await self.errand(Household(seed, pace_ms=self._order.pace_ms), budget=BUDGET)
            else:
                await self.errand(Order(**{**asdict(self._order), "seed": seed}))

    async def _answer_questions(self) -> None:
        """Answers whatever is asked, now and then twice: an answer that was lost is asked for again."""
        while True:
            page = await self._ask("GET", f"{API}/inputs", params={"limit": 100})
            asked = page.json()["inputs"] if page is not None and page.status_code == 200 else []
            for one in asked:
                said = said_to(one)
                for _ in range(self._random.choice((1, 1, 2))):
                    await self._ask("POST", f"{API}/inputs/{one['input_id']}", json=said)
            await asyncio.sleep(0.2)

    async def errand(self, order: Errand, **options: Any) -> Accepted:
        """Submits one errand, and returns when it has ended."""
        run = await self._submit(order, options)
        accepted = Accepted(run, order, time.time())
        self.accepted.append(accepted)
        reading = None
        if self._random.random() < self._readers:
            accepted.reading = Reading(run)
            reading = asyncio.create_task(self._read(accepted.reading))
        try:
            await self._end(accepted)
            if reading is not None:
                await reading
        except TimeoutError:
            self.stuck.append(run)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        return accepted

    async def _submit(self, order: Errand, options: dict[str, Any]) -> str:
        """Asks with the same key until it is answered with 202."""
        body = {"workflow": order.workflow, "input": asdict(order), **options}
        key = {"Idempotency-Key": f"errand-{order.seed}"}
        while True:
            answer = await self._ask("POST", f"{API}/runs", json=body, headers=key)
            if answer is not None and answer.status_code == 202:
                return str(answer.json()["run_id"])
            await asyncio.sleep(0.1)

    async def _end(self, accepted: Accepted) -> None:
        path = f"{API}/runs/{accepted.run}/wait"
        began = time.monotonic()
        while accepted.ended is None:
            answer = await self._ask("GET", path, params={"timeout": 20})
            if answer is not None and answer.status_code == 200:
                record = answer.json()
                if record["ended_at"] is not None:
                    accepted.ended = record
                    return
            else:
                await asyncio.sleep(0.1)
            if time.monotonic() - began > self._patience:
                raise TimeoutError(accepted.run)

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        began = time.monotonic()
        self.answers.in_flight += 1
        try:
            answer = await self._http.request(method, path, **options)
        except GONE:
            return None
        finally:
            self.answers.in_flight -= 1
        self.answers.take(answer, time.monotonic() - began)
        return answer

    async def _read(self, reading: Reading) -> None:
        """Follows the stream to 204; cuts its own connection now and then, and comes back where it was."""
        while not reading.told_over:
            with contextlib.suppress(*GONE):
                await self._connect(reading)
            await asyncio.sleep(0.05)

    async def _connect(self, reading: Reading) -> None:
        last = reading.seen[-1][0] if reading.seen else 0
        headers = {"Last-Event-ID": str(last)} if last else {}
        cut_after = self._random.choice((None, None, self._random.randint(1, 40)))
        url = f"{API}/runs/{reading.run}/stream"
        async with self._http.stream("GET", url, headers=headers) as answer:
            reading.connections += 1
            self.answers.take(answer, 0)
            if answer.status_code == 204:
                reading.told_over = True
            if answer.status_code == 200:
                await self._take(reading, answer, cut_after)

    async def _take(self, reading: Reading, answer: httpx.Response, cut_after: int | None) -> None:
        parser, last, taken = EventParser(), "", 0
        async for chunk in answer.aiter_bytes():
            for sent in parser.feed(chunk):
                if sent.id == last:  # text in between has no id of its own
                    continue
                last = sent.id
                reading.seen.append((int(sent.id), sent.type, sent.data))
                taken += 1
            if cut_after is not None and taken >= cut_after:
                return

    async def delete(self, run: str) -> bool:
        """Whether the run is gone."""
        for _ in range(20):
            answer = await self._ask("DELETE", f"{API}/runs/{run}")
            if answer is not None and answer.status_code == 204:
                return True
            await asyncio.sleep(0.1)
        return False
