"""The whole service as real processes, readers of its streams, and ways to hurt it."""

import asyncio
import contextlib
import itertools
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from posthouse import clock
from posthouse.cli.sse import EventParser
from posthouse.embedded.ports import free_ports
from posthouse.embedded.process import Process
from posthouse.embedded.stack import STAND_IN, Layout, lay_out, opened
from posthouse.embedded.supervisor import Supervisor
from posthouse.settings import Settings
from posthouse.storage import keys

API = "/api/v1"
LIMIT_SECONDS = 30.0
LEASE_SECONDS = 1.0
DRAIN_SECONDS = 1.5
PERILS = "tests.road.perils"
AS_EVER: Mapping[str, object] = {"type": "delay", "seconds": 0}

PAGES = {
    "leases.md": """# Leases
        A worker holds a run by a lease of a few seconds and renews the lease with a heartbeat.
        When the worker dies, its lease ends and another worker takes the run on from its last step.
        A worker that cannot renew its lease starts no model call and no tool call any more.""",
    "journal.md": """# The journal of a run
        Each completed step of a run is written into the journal together with its events.
        A worker that takes a run on after a death reads the journal, so no step is done again.
        The journal of a run is only ever appended to, and a step is committed exactly once.""",
    "fence.md": """# The fence
        Every claim of a run raises its epoch, and each write of a worker carries that epoch.
        A write of a worker with an old epoch is refused, so a worker that woke up late does no harm.
        The lease says who may work on a run, and the fence makes sure that nobody else does.""",
    "events.md": """# Events of a run
        Every step of a run adds events with numbers that have no gap, and readers are pushed them.
        A reader that lost its connection sends the number of the last event and gets the rest.
        The death of a worker leaves no hole in the events, as a worker writes them with the step.""",
}


def written(folder: Path, pages: Mapping[str, str] = PAGES) -> Path:
    """The folder with the pages in it."""
    folder.mkdir(parents=True)
    for name, text in pages.items():
        (folder / name).write_text("\n\n".join(line.strip() for line in text.splitlines()))
    return folder


@dataclass(frozen=True)
class Message:
    """One message of a stream and when it came (monotonic seconds); text in between has no id."""

    id: int | None
    type: str
    data: dict[str, Any]
    raw: str
    at: float


class Feed:
    """One connection to a stream; iterating ends with it, or raises TransportError."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._response = response

    async def __aiter__(self) -> AsyncIterator[Message]:
        parser, last = EventParser(), ""
        async for chunk in self._response.aiter_bytes():
            for sent in parser.feed(chunk):
                own = int(sent.id) if sent.id != last else None
                last = sent.id
                data = orjson.loads(sent.data)
                yield Message(own, sent.type, data, sent.data, clock.monotonic())


class Reader:
    """Follows a run in the background, over lost connections, until it is told 204."""

    def __init__(self, connect: Callable[[int], Any], cut_after: int | None = None) -> None:
        self.seen: list[Message] = []
        self.connections = 0
        self.last = 0
        self._connect = connect
        self._cut_after = cut_after
        self._more = asyncio.Condition()
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if await self._connected() == 204:
                    break
            await clock.sleep(0.05)  # the pause that every EventSource makes

    async def _connected(self) -> int:
        async with self._connect(self.last) as feed:
            self.connections += 1
            if feed.status != 200:
                return int(feed.status)
            numbered = 0
            async for message in feed:
                await self._take(message)
                numbered += message.id is not None
                if numbered == self._cut_after:
                    break
        return 200

    async def _take(self, message: Message) -> None:
        async with self._more:
            self.seen.append(message)
            self.last = message.id or self.last
            self._more.notify_all()

    async def until(self, type: str, times: int = 1) -> Message:
        """The message of the type that came as the so-manieth."""

        def found() -> list[Message]:
            return [message for message in self.seen if message.type == type]

        async with asyncio.timeout(LIMIT_SECONDS), self._more:
            await self._more.wait_for(lambda: len(found()) >= times or self.task.done())
        assert len(found()) >= times, [message.type for message in self.seen]
        return found()[times - 1]

    async def end(self) -> list[Message]:
        """All messages, once the stream has answered 204."""
        async with asyncio.timeout(LIMIT_SECONDS):
            await asyncio.shield(self.task)
        return self.seen

    @property
    def ids(self) -> list[int]:
        """The ids in the order in which they came."""
        return [message.id for message in self.seen if message.id is not None]


def shown_texts(messages: list[Message]) -> dict[str, str]:
    """What a reader that does as told has on its screen at the end: the text of each turn.

    Also checks that the pieces fit, so that no text ever stood there twice.
    """
    texts: dict[str, str] = {}
    for message in messages:
        step, data = message.data.get("step", ""), message.data.get("data", {})
        match message.type:
            case "message.superseded":
                texts.pop(step, None)
            case "message.delta":
                assert data["offset"] == len(texts.get(step, "")), (step, data, texts)
                texts[step] = texts.get(step, "") + data["text"]
            case "message.completed":
                assert data["length"] == len(texts[step])
    return texts


class Model:
    """The stand-in model, behind its control routes."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def tell(self, *behaviours: Mapping[str, object]) -> None:
        """What the next requests get."""
        answer = await self._http.post("/control/script", json={"behaviours": behaviours})
        assert answer.status_code == 204, answer.text

    async def pace(self, **milliseconds: float) -> None:
        """How slow its answers are."""
        await self._http.post("/control/latency", json=milliseconds)

    async def release(self, name: str) -> None:
        """Lets an answer go."""
        await self._http.post("/control/release", json={"name": name})

    async def requests(self) -> list[dict[str, Any]]:
        """What it was asked since the test began."""
        return list((await self._http.get("/control/requests")).json())

    async def fingerprints(self) -> Counter[str]:
        """How often it was asked what."""
        return Counter(request["fingerprint"] for request in await self.requests())

    async def held(self) -> dict[str, Any]:
        """The request whose answer is held, once there is one."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                for request in await self.requests():
                    if request["held"]:
                        return request

    async def reset(self) -> None:
        """Nothing told or remembered."""
        await self._http.delete("/control")


class Ears:
    """What the supervisor says, and what its processes write."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.written: list[str] = []
        self._more = asyncio.Condition()
        self._telling: set[asyncio.Task[None]] = set()

    def say(self, line: str) -> None:
        """Takes one line of the supervisor."""
        self.lines.append(line)
        self._wake()

    def echo(self, name: str, line: str) -> None:
        """Takes one line of a process."""
        self.written.append(f"{name} {line}")
        self._wake()

    def _wake(self) -> None:
        task = asyncio.get_running_loop().create_task(self._tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self) -> None:
        async with self._more:
            self._more.notify_all()

    async def until(self, found: Callable[[], bool]) -> None:
        """Returns when it is so; looks again at every line."""
        async with asyncio.timeout(LIMIT_SECONDS), self._more:
            await self._more.wait_for(found)


def lines_of(note: Path) -> list[str]:
    """What workflows wrote into the file so far."""
    return note.read_text().splitlines() if note.exists() else []


def is_there(pid: int) -> bool:
    """Whether the process is there and is more than a remnant that its parent has not yet looked at."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state not in "ZX"


class Road:
    """A running stack, as its users and its enemies see it."""

    def __init__(
        self, layout: Layout, stack: Supervisor, ears: Ears, http: Any, model: Any
    ) -> None:
        self.layout = layout
        self.stack = stack
        self.http: httpx.AsyncClient = http
        self.model = Model(model)
        self._ears = ears
        self._deaths: Counter[str] = Counter()

    @property
    def redis_url(self) -> str:
        """Where its Redis is."""
        return next(p.env["REDIS_URL"] for p in self.layout.processes if "REDIS_URL" in p.env)

    def hurt(self, name: str, how: signal.Signals = signal.SIGKILL) -> float:
        """A signal that ends a process, and when; the supervisor starts it again."""
        pid = self.stack.pid(name)
        assert pid is not None, f"{name} is not there"
        self._deaths[name] += 1
        os.kill(pid, how)
        return clock.monotonic()

    async def healed(self) -> None:
        """Returns when everything that was hurt, or fell by itself, is back."""
        await self._ears.until(lambda: all(self._stands(p.name) for p in self.layout.processes))

    def _stands(self, name: str) -> bool:
        own = [line for line in self._ears.lines if line.startswith(f"{name} ")]
        falls = [at for at, line in enumerate(own) if "; starting it again in " in line]
        backs = [at for at, line in enumerate(own) if f"{name} is back after" in line]
        return len(falls) >= self._deaths[name] and max(falls, default=-1) <= max(backs, default=-1)

    async def heard(self, words: str, times: int = 1) -> None:
        """Returns when the supervisor has said so in so many lines."""
        await self._ears.until(lambda: self.said(words) >= times)

    def said(self, words: str) -> int:
        """In how many lines the supervisor said so."""
        return sum(words in line for line in self._ears.lines)

    async def logged(self, name: str, *patterns: str) -> None:
        """Returns when the process has written a line in which all these are found."""

        def found() -> bool:
            own = (line for line in self._ears.written if line.startswith(name))
            return any(all(re.search(pattern, line) for pattern in patterns) for line in own)

        await self._ears.until(found)

    def complaints(self) -> list[str]:
        """What the processes wrote that they did not expect."""
        signs = ('"level":"error"', '"level": "error"', "Traceback", "ERROR")
        return [line for line in self._ears.written if any(sign in line for sign in signs)]

    def worker_of(self, claim: Message | dict[str, Any]) -> str:
        """The name of the process that an event says took the run."""
        event = claim.data if isinstance(claim, Message) else claim
        pid = int(event["data"]["worker"].split("-")[-2])
        names = [p.name for p in self.layout.processes if p.name.startswith("worker")]
        return next(name for name in names if self.stack.pid(name) == pid)

    async def start(self, workflow: str, given: Mapping[str, object], **options: object) -> str:
        """Starts a run of the workflow; gives its id."""
        wanted = {"workflow": workflow, "input": given, **options}
        answer = await self.http.post(f"{API}/runs", json=wanted)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["run_id"])

    async def noted(self, note: Path, times: int, words: str = "") -> list[str]:
        """The lines of a workflow's note with the words, once there are so many."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                found = [line for line in lines_of(note) if words in line]
                if len(found) >= times:
                    return found
                await clock.sleep(0.02)

    async def start_suspect(self, note: Path, seconds: list[float]) -> str:
        """Starts a run of which two workers are said to have died, once it naps; gives its id."""
        way = {"note": str(note), "seconds": [0.0, *seconds], "nap_before": 1, "nap_seconds": 0.5}
        run_id = await self.start("innocent", way)
        async with Redis.from_url(self.redis_url) as redis:
            while not await redis.hget(keys.run(run_id), "parked_at"):
                await clock.sleep(0.01)
            await redis.hset(keys.run(run_id), "crashes", 2)
        return run_id

    async def gone(self, *pids: int) -> None:
        """Returns when none of the processes is there any more."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while any(is_there(pid) for pid in pids):
                await clock.sleep(0.02)

    async def submit(self, topic: str, depth: str = "deep", **headers: str) -> str:
        """Starts a research run; gives its id."""
        wanted = {"workflow": "research", "input": {"topic": topic, "depth": depth}}
        answer = await self.http.post(f"{API}/runs", json=wanted, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["run_id"])

    async def ended(self, run_id: str) -> dict[str, Any]:
        """The record of a run once it has ended."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                answer = await self.http.get(f"{API}/runs/{run_id}/wait", params={"timeout": 30})
                assert answer.status_code == 200, answer.text
                if answer.json()["ended_at"] is not None:
                    return dict(answer.json())

    async def log(self, run_id: str) -> list[dict[str, Any]]:
        """Every event of a run; their numbers have to be 1, 2, 3, ..."""
        path = f"{API}/runs/{run_id}/events"
        events = (await self.http.get(path, params={"limit": 500})).json()["events"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        return list(events)

    async def steps(self, run_id: str) -> list[dict[str, Any]]:
        """The journalled steps of a run with their results."""
        return list((await self.http.get(f"{API}/runs/{run_id}/steps")).json()["steps"])

    @asynccontextmanager
    async def stream(self, run_id: str, after: int = 0, form: str = "native") -> Any:
        """One connection to a run's stream; `form` is native, progress, or the tutorial's."""
        path = f"workflows/{run_id}/stream" if form == "tutorial" else f"runs/{run_id}/stream"
        query = {"format": form} if form == "progress" else {}
        headers = {"Last-Event-ID": str(after)} if after else {}
        url = f"{API}/{path}"
        async with self.http.stream("GET", url, params=query, headers=headers) as response:
            yield Feed(response)

    @asynccontextmanager
    async def reading(
        self, run_id: str, form: str = "native", cut_after: int | None = None
    ) -> AsyncIterator[Reader]:
        """A reader of a run for as long as the block lasts; `cut_after` messages it reconnects."""
        reader = Reader(lambda last: self.stream(run_id, last, form), cut_after)
        try:
            yield reader
        finally:
            reader.task.cancel()
            await asyncio.gather(reader.task, return_exceptions=True)


Adapt = Callable[[Process], Process | None]


@asynccontextmanager
async def open_road(
    folder: Path,
    *,
    corpus: Path | None = None,
    env: Mapping[str, str] | None = None,
    adapt: Adapt = lambda process: process,
    **given: object,
) -> AsyncIterator[Road]:
    """A stack of real processes with the environment on top; `adapt` changes or leaves out some."""
    corpus = corpus or written(folder / "corpus")
    values = {"corpus": corpus, "data_dir": folder / "data", "port": free_ports(1)[0], **given}
    layout = lay_out(Settings(_env_file=None, **values), any_port=True)
    on_top = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "POSTHOUSE_LEASE_SECONDS": str(LEASE_SECONDS),
        "POSTHOUSE_DRAIN_SECONDS": str(DRAIN_SECONDS),
        **(env or {}),
    }
    processes = (adapt(replace(p, env={**p.env, **on_top})) for p in layout.processes)
    layout = replace(layout, processes=tuple(filter(None, processes)))
    ears = Ears()
    timeout = httpx.Timeout(10, read=LIMIT_SECONDS)
    client = partial(httpx.AsyncClient, timeout=timeout, trust_env=False)
    port = next(p.argv[-1] for p in layout.processes if p.name == STAND_IN)
    with opened(layout, ears.say, ears.echo) as stack:
        async with (
            stack,
            client(base_url=layout.api_url) as http,
            client(base_url=f"http://127.0.0.1:{port}") as model,
        ):
            yield Road(layout, stack, ears, http, model)


@pytest.fixture(scope="session")
def new_road() -> Any:
    """`open_road`, for tests that need a stack of their own."""
    return open_road


@pytest.fixture(scope="package")
async def shared_road(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Road]:
    """One stack with two workers; what a test kills comes back by itself."""
    async with open_road(tmp_path_factory.mktemp("road"), libraries=PERILS) as road:
        yield road


@pytest.fixture
async def road(shared_road: Road) -> AsyncIterator[Road]:
    """The shared stack, whole again and with a model that was told nothing."""
    await shared_road.healed()
    await shared_road.model.reset()
    yield shared_road
    await shared_road.model.reset()


@pytest.fixture
async def redis(road: Road) -> AsyncIterator[Redis]:
    """A client of the shared stack's own Redis."""
    async with Redis.from_url(road.redis_url) as client:
        yield client


@pytest.fixture
def topic() -> Callable[[], str]:
    """Topics that are told apart, and that every page of the corpus has something on."""
    return lambda: f"worker death, lease, journal, fence and events, look {next(_looks)}"


_looks = itertools.count(1)


@pytest.fixture
def screen_of() -> Callable[[list[Message]], dict[str, str]]:
    """`shown_texts`, for tests."""
    return shown_texts


@pytest.fixture
def as_ever() -> Mapping[str, object]:
    """A behaviour that changes nothing, for requests before the one that is meant."""
    return AS_EVER


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with the pages in it."""
    return written(tmp_path / "corpus")
