"""Redis killed, frozen, full or read-only while clients ask for everything: prompt answers, no exit, no run lost."""

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest

from posthouse import clock

FROZEN_SECONDS = float(os.environ.get("FROZEN_FOR", "5"))
pytestmark = [pytest.mark.guarantee("G10"), pytest.mark.timeout(60 + FROZEN_SECONDS)]

API = "/api/v1"
TROUBLED_SECONDS = 2.0
ANSWER_SECONDS = 1.5  # a second, and what this machine is busy with
READY_SECONDS = 5.0
PAUSE_SECONDS = 0.06
PROCESSES = ("api", "worker-1", "worker-2")
CODES = {429: "queue_full", 503: "unavailable"}
READS = {"run": "runs/{}", "runs": "runs", "queue": "queue", "workers": "workers"}
KINDS = {*READS, "ready", "submit", "cancel", "stream"}
AN_HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Answer:
    kind: str
    status: int
    began: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What clients and workers had of a trouble; that no run was lost in it is made sure of already."""

    met: dict[str, set[int]]  # the statuses in the midst of it, by kind of question
    slowest: float
    ready: float
    repeated: int  # beats of a run that were done once more

    @property
    def prompt(self):
        return self.slowest < ANSWER_SECONDS and self.ready < READY_SECONDS


class Callers:
    """One caller for each kind of question; each asks again and again, and checks what it is answered."""

    def __init__(self, road, note):
        self._road = road
        self._input = {"note": str(note), "seconds": [0.0]}
        self._chance = random.Random(6)
        self._stopping = asyncio.Event()
        self._later = []
        self.accepted = []
        self.cancelled = []
        self.answers = []

    @contextlib.asynccontextmanager
    async def asking(self, *known):
        self.accepted += known
        async with asyncio.TaskGroup() as tasks:
            for kind in KINDS:
                tasks.create_task(self._again_and_again(kind), name=kind)
            yield
            self._stopping.set()

    async def _again_and_again(self, kind):
        while not self._stopping.is_set():
            await self._once(kind)
            await clock.sleep(PAUSE_SECONDS)

    async def _once(self, kind):
        match kind:
            case "ready":
                await self._ask(kind, "GET", "/health/ready")
            case "submit":
                await self._submit(self.accepted)
                await self._submit(self._later, not_before=clock.iso(clock.wall_ms() + AN_HOUR_MS))
            case "cancel":
                await self._cancel()
            case "stream":
                await self._ask(kind, "GET", f"{API}/runs/{self._any()}/stream")
            case _ if kind in READS:
                await self._ask(kind, "GET", f"{API}/{READS[kind].format(self._any())}")

    def _any(self):
        return self._chance.choice(self.accepted)

    async def _submit(self, into, **options):
        wanted = {"workflow": "innocent", "input": self._input, **options}
        if answer := await self._ask("submit", "POST", f"{API}/runs", json=wanted):
            into.append(answer["run_id"])

    async def _cancel(self):
        """One that waits; else one that is cancelled already, which is answered in the same way."""
        run_id = (self._later or self.cancelled or [None])[0]
        if not run_id or not await self._ask("cancel", "POST", f"{API}/runs/{run_id}/cancel"):
            return
        if run_id in self._later:
            self._later.remove(run_id)
            self.cancelled.append(run_id)

    async def _ask(self, kind, method, path, **options):
        """What a good answer says; of a stream the head is enough."""
        began = clock.monotonic()
        async with self._road.http.stream(method, path, **options) as answer:
            took = clock.monotonic() - began
            self.answers.append(Answer(kind, answer.status_code, began, took))
            if kind == "stream" and answer.status_code in (200, 204):
                return {}
            await answer.aread()
        if answer.status_code in (200, 202):
            return answer.json()
        # Also no 404: what was accepted is there, whatever happened to Redis since.
        assert answer.status_code in CODES, (method, path, answer.status_code, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) > 0
        body = answer.json()
        assert (body["code"], body["retryable"]) == (CODES[answer.status_code], True)
        return None

    async def good(self, since, *kinds):
        """Returns when each of the kinds has had a good answer to a question asked since then; gives the seconds."""
        async with asyncio.timeout(20):
            while True:
                good = {a.kind for a in self.answers if a.began >= since and a.status < 300}
                if good >= set(kinds):
                    return clock.monotonic() - since
                await clock.sleep(0.01)

    def met(self, begin, end):
        """The statuses of the answers in between, by kind of question."""
        found = defaultdict(set)
        for answer in self.answers:
            if begin <= answer.began and answer.began + answer.seconds <= end:
                found[answer.kind].add(answer.status)
        return found

    def slowest(self):
        """The seconds of the answer that took longest."""
        slowest = max(self.answers, key=lambda answer: answer.seconds)
        print(
            f"\n{len(self.answers)} answers, the slowest ({slowest.kind}) {slowest.seconds:.2f} s"
        )
        return slowest.seconds


@contextlib.asynccontextmanager
async def killed(road, redis):
    """Twice; the supervisor starts it again."""
    for _ in range(2):
        # Else the last second before a kill may be lost, as the page on durability says.
        await redis.config_set("appendfsync", "always")
        road.hurt("valkey")
        await road.healed()
    yield


@contextlib.asynccontextmanager
async def frozen(road, redis):
    """For longer than leases, timeouts and patience."""
    pid = road.stack.pid("valkey")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def full(road, redis):
    """With hardly more memory than it uses."""
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used + 32 * 1024)
    try:
        yield
    finally:
        await redis.config_set("maxmemory", 0)


@contextlib.asynccontextmanager
async def read_only(road, redis):
    """A replica of what is not there."""
    await redis.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        await redis.replicaof("NO", "ONE")


ANSWERED = {kind: {200} for kind in (*READS, "stream", "cancel")}
NOTHING = {kind: {503} for kind in KINDS}


def fits(met, expected):
    """Whether each kind of question was answered, and with its expected statuses only."""
    return all(met[kind] and met[kind] <= statuses for kind, statuses in expected.items())


async def carried_through(road, folder, trouble, seconds, *, meanwhile=None):
    """Runs and callers live through the trouble. Asserts that no process went, no run, no event and no work."""
    before = {name: road.stack.pid(name) for name in PROCESSES}, road.complaints()
    stops = [folder / f"stop-{number}" for number in range(4)]
    notes = [folder / f"note-{number}" for number in range(4)]
    runs = [
        await road.start("patient", {"note": str(note), "until": str(stop)})
        for note, stop in zip(notes, stops, strict=True)
    ]
    callers = Callers(road, folder / "note")
    async with road.reading(runs[0]) as reader:
        async with callers.asking(*runs):
            await callers.good(clock.monotonic(), *KINDS)
            async with trouble:
                await clock.sleep(0.5 if seconds else 0)
                began = clock.monotonic()
                if meanwhile is not None:
                    stops[1].touch()
                    await meanwhile(runs[1])
                await clock.sleep(seconds)
                ended = clock.monotonic()
            back = clock.monotonic()
            ready = await callers.good(back, "ready")
            well = await callers.good(back, *KINDS)
        for stop in stops:
            stop.touch()
        messages = await reader.end()
    assert ({name: road.stack.pid(name) for name in PROCESSES}, road.complaints()) == before
    print(f"ready after {ready:.2f} s, all is well after {well:.2f} s")
    await all_ended(road, callers)
    log = await road.log(runs[0])
    assert [message.id for message in messages] == [event["seq"] for event in log]
    repeated = max(map(repeated_in, notes))
    return Outcome(callers.met(began, ended), callers.slowest(), ready, repeated)


def repeated_in(note):
    """How many of a run's beats were done once more; asserts that none was left out."""
    done = Counter(line.split()[1] for line in note.read_text().splitlines())
    assert set(done) == {str(number) for number in range(1, len(done) + 1)}
    return done.total() - len(done)


async def all_ended(road, callers):
    for run_ids, status in ((callers.accepted, "completed"), (callers.cancelled, "cancelled")):
        records = await asyncio.gather(*map(road.ended, run_ids))
        assert {record["status"] for record in records} == {status}


async def test_killed(road, redis, tmp_path):
    outcome = await carried_through(road, tmp_path, killed(road, redis), 0)
    assert outcome.prompt, outcome
    # Only what was in flight when Redis went may have been done once more, and by a successor.
    assert outcome.repeated <= 2


async def test_frozen(road, redis, tmp_path):
    outcome = await carried_through(road, tmp_path, frozen(road, redis), FROZEN_SECONDS)
    assert outcome.prompt, outcome
    assert fits(outcome.met, NOTHING), outcome
    assert outcome.repeated <= 1


async def test_full(road, redis, tmp_path):
    async def it_ends(run_id):
        assert (await road.ended(run_id))["status"] == "completed"

    outcome = await carried_through(
        road, tmp_path, full(road, redis), TROUBLED_SECONDS, meanwhile=it_ends
    )
    assert outcome.prompt, outcome
    assert fits(outcome.met, {**ANSWERED, "submit": {429, 503}}), outcome
    assert outcome.repeated == 0


async def test_read_only(road, redis, tmp_path):
    refused = {kind: {503} for kind in ("ready", "submit", "cancel")}
    outcome = await carried_through(road, tmp_path, read_only(road, redis), TROUBLED_SECONDS)
    assert outcome.prompt, outcome
    assert fits(outcome.met, ANSWERED | refused), outcome
    assert outcome.repeated == 0
