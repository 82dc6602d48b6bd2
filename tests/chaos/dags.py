"""Random plans on a fleet whose workers are killed: order, results, nothing done twice, how soon subtasks begin."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from redis.asyncio import Redis

from posthouse.events.types import Draft, RunCreated
from posthouse.ids import new_run_id
from posthouse.runs.model import TERMINAL
from posthouse.runs.transitions import Acceptance, Transitions
from posthouse.storage import keys
from posthouse.workflows.plan import Plan, Subtask, order
from tests.chaos.library.workflows.graph import Graph
from tests.chaos.library.workflows.leaf import said_by
from tests.chaos.nursery import Worker
from tests.chaos.recorders import value_of
from tests.chaos.report import Inflicted, Report
from tests.chaos.stack import Plan as StackPlan
from tests.chaos.stack import Stack, open_stack

TTL_MS = 3_600_000
LOOK_EVERY_SECONDS = 0.05


@dataclass(frozen=True)
class Load:
    """So many plans of at most so many subtasks, a few at once; workers die during the second half."""

    plans: int = 100
    most: int = 50
    at_once: int = 4
    kills: int = 20
    workers: int = 3
    slots: int = 20
    pace_ms: int = 20
    lease: float = 1.5
    kill_every: float = 1.0
    patience: float = 120.0


@dataclass
class Walk:
    """One plan that is carried out."""

    run_id: str
    plan: Plan
    seed: int


@dataclass(frozen=True)
class Told:
    """An event of a subtask in the log of its root; `time` in ms by Redis' clock."""

    kind: str
    subtask: str
    run_id: str
    time: int


@dataclass
class Crew:
    """The workers that are alive now."""

    stack: Stack
    workers: list[Worker] = field(default_factory=list)

    async def grow(self) -> None:
        """One more."""
        url = f"redis://127.0.0.1:{self.stack.ports.valkey}/0"  # no proxy: it would be in the way
        self.workers.append(await self.stack.nursery.start(REDIS_URL=url))

    async def lose(self, chance: random.Random) -> str | None:
        """SIGKILL to one of them that owns runs, and a new one in its place; what it owned."""
        owners = await _owners(self.stack.redis)
        busy = [worker for worker in self.workers if owners[worker.pid]]
        worker = chance.choice(busy or self.workers)
        self.workers.remove(worker)
        worker.send(signal.SIGKILL)
        await worker.ended
        orphans = (await _owners(self.stack.redis))[worker.pid]
        await self.grow()
        return f"{orphans} runs lost their worker" if orphans else None


async def dags(
    folder: Path, seed: int, load: Load, tell: Callable[[str], None] = lambda _: None
) -> Report:
    """Carries out all plans, and judges what Redis and the tool server wrote down."""
    began = time.monotonic()
    report = Report(seed, needed_runs=load.plans, needed_faults=load.kills)
    chance = random.Random(seed)
    half = load.plans // 2
    stack_plan = StackPlan(workers=0, slots=load.slots, lease=load.lease, api=False)
    async with open_stack(folder, stack_plan) as stack:
        crew = Crew(stack)
        for _ in range(load.workers):
            await crew.grow()
        quiet = await _all(stack, load, chance, lambda begun: begun < load.plans - half)
        tell(f"{len(quiet)} plans are carried out, now workers die")
        killer = asyncio.create_task(_kill(crew, load, random.Random(seed), report, began))
        rough = await _all(stack, load, chance, lambda begun: begun < half or not killer.done())
        await killer
        report.breaches = {"plans": [], "subtasks": []}
        gaps = [
            [gap for walk in walks for gap in await _judged(stack, walk, report)]
            for walks in (quiet, rough)
        ]
        left = [key.decode() for key in await stack.redis.keys("arq:*")]
    report.breaches["queue"] = [f"{key} was left" for key in left]
    report.executions = len(stack.tools.log)
    report.seconds = time.monotonic() - began
    for name, some in zip(("", ", while workers are killed"), gaps, strict=True):
        report.figures |= _figures(name, sorted(some))
    return report


def random_plan(chance: random.Random, most: int) -> Plan:
    """Of up to so many subtasks in any order: loose, layered, dense, a chain, or a star."""
    count = chance.randint(2, most)
    shape = chance.choice(["loose", "layers", "dense", "chain", "star"])

    def before(number: int) -> Sequence[int]:
        match shape:
            case "chain":
                return range(max(0, number - 1), number)
            case "star":
                return range(number) if number == count - 1 else range(min(number, 1))
            case "layers":
                layer = number // 5 * 5
                return chance.sample(range(max(0, layer - 5), layer), min(layer, 2))
            case _:
                share = 0.03 if shape == "loose" else 0.4
                return [one for one in range(number) if chance.random() < share]

    subtasks = [
        Subtask(
            id=f"n{number}",
            agent="nobody",
            task=f"Do {number}.",
            depends_on=tuple(f"n{one}" for one in before(number)),
        )
        for number in range(count)
    ]
    chance.shuffle(subtasks)
    return Plan(subtasks=tuple(subtasks))


def answers_to(plan: Plan, seed: int) -> dict[str, str]:
    """What the subtasks must say, worked out without the service."""
    said: dict[str, str] = {}
    for one in order(plan):
        given = [said[before] for before in plan.by_id[one].depends_on]
        said[one] = said_by(value_of(seed, one), given)
    return said


async def _all(
    stack: Stack, load: Load, chance: random.Random, more: Callable[[int], bool]
) -> list[Walk]:
    """Carries out plans, a few at once, while there shall be more; returns when all have ended."""
    walks: list[Walk] = []

    async def one_after_another() -> None:
        while more(len(walks)):
            plan, seed = random_plan(chance, load.most), chance.randrange(1 << 31)
            walks.append(Walk(new_run_id(), plan, seed))
            await _walk(stack.redis, walks[-1], load)

    await asyncio.gather(*(one_after_another() for _ in range(load.at_once)))
    return walks


async def _walk(redis: Redis, walk: Walk, load: Load) -> None:
    given = Graph(plan=walk.plan, seed=walk.seed, pace_ms=load.pace_ms).model_dump_json()
    created = Draft(event=RunCreated(workflow="graph", version=1))
    run = Acceptance(walk.run_id, "default", "graph", 1, given, "{}", created, TTL_MS)
    await Transitions(redis).accept(run)
    until = time.monotonic() + load.patience
    while time.monotonic() < until:
        status = await redis.hget(keys.run(walk.run_id), "status")
        if status is not None and status.decode() in TERMINAL:
            return
        await asyncio.sleep(LOOK_EVERY_SECONDS)


async def _kill(
    crew: Crew, load: Load, chance: random.Random, report: Report, began: float
) -> None:
    while report.proven < load.kills and len(report.faults) < 3 * load.kills:
        await asyncio.sleep(load.kill_every * chance.uniform(0.5, 1.5))
        hit = await crew.lose(chance)
        report.faults.append(Inflicted("worker killed", round(time.monotonic() - began, 2), hit))


async def _owners(redis: Redis) -> Counter[int]:
    """How many runs each process owns."""
    running = [*await redis.zrange(keys.index("default", "running"), 0, -1)]
    running += await redis.zrange(keys.index("default:children", "running"), 0, -1)
    pipe = redis.pipeline(transaction=False)
    for run in running:
        pipe.hmget(keys.run(run.decode()), "owner", "claim")
    owned = await pipe.execute() if running else []
    return Counter(int(owner.split(b"-")[-2]) for owner, claim in owned if owner and claim)


async def _judged(stack: Stack, walk: Walk, report: Report) -> list[int]:
    """Counts the walk and its breaches; the gaps before its subtasks (ms)."""
    values = await stack.redis.hmget(keys.run(walk.run_id), "status", "output")  # type: ignore[misc]
    status, output = (value or b"" for value in values)
    wanted = {"said": answers_to(walk.plan, walk.seed)}
    if status != b"completed" or orjson.loads(output) != wanted:
        report.breaches["plans"].append(
            f"{walk.run_id} is {status.decode()}, or its output is wrong"
        )
        return []
    report.runs += 1
    told = await _story(stack.redis, walk.run_id)
    report.steps += len(walk.plan.subtasks)
    found = [*wrong_order(walk.plan, told), *await _repeated(stack, told, report)]
    report.breaches["subtasks"] += [f"{walk.run_id}: {text}" for text in found]
    return list(gaps_in(walk.plan, told))


async def _story(redis: Redis, run_id: str) -> list[Told]:
    """What the root's log says of its subtasks, in order."""
    entries = await redis.xrange(keys.events(run_id))
    return [
        Told(
            fields[b"type"].decode().removeprefix("subtask."),
            orjson.loads(fields[b"data"])["subtask"],
            fields[b"run_id"].decode(),
            int(fields[b"time"]),
        )
        for _, fields in entries
        if fields[b"type"].startswith(b"subtask.")
    ]


def wrong_order(plan: Plan, told: Iterable[Told]) -> Iterator[str]:
    """What did not begin after all that it depends on, did not begin or end once, or failed."""
    begun, ended = list[str](), list[str]()
    for event in told:
        match event.kind:
            case "started":
                early = set(plan.by_id[event.subtask].depends_on) - set(ended)
                if early:
                    yield f"{event.subtask} began before {', '.join(sorted(early))} had ended"
                begun.append(event.subtask)
            case "completed":
                ended.append(event.subtask)
            case _:
                yield f"{event.subtask} {event.kind}"
    ids = sorted(plan.by_id)
    if sorted(begun) != ids or sorted(ended) != ids:
        yield f"{len(begun)} began and {len(ended)} ended, of {len(ids)}"


async def _repeated(stack: Stack, told: Sequence[Told], report: Report) -> list[str]:
    """Subtasks whose work was done after their end, or more often than they were claimed."""
    ends = {event.run_id: event for event in told if event.kind == "completed"}
    pipe = stack.redis.pipeline(transaction=False)
    for run_id in ends:
        pipe.hget(keys.run(run_id), "epoch")
    claims = dict(zip(ends, map(int, await pipe.execute()), strict=True))
    calls = Counter(call.run for call in stack.tools.log)
    late = {
        call.run for call in stack.tools.log if call.run in ends and call.at > ends[call.run].time
    }
    report.extra_executions += sum(calls[run_id] - 1 for run_id in ends)
    return [
        *(f"{ends[run_id].subtask} was done again after its end" for run_id in late),
        *(
            f"{ends[run_id].subtask} was done {calls[run_id]} times in {claims[run_id]} claims"
            for run_id in ends
            if not 1 <= calls[run_id] <= claims[run_id]
        ),
    ]


def gaps_in(plan: Plan, told: Iterable[Told]) -> Iterator[int]:
    """From the end of what a subtask waited for last to its start, in ms."""
    ended: dict[str, int] = {}
    for event in told:
        if event.kind == "completed":
            ended[event.subtask] = event.time
        elif event.kind == "started" and (before := plan.by_id[event.subtask].depends_on):
            yield event.time - max(ended.get(one, event.time) for one in before)


def _figures(when: str, gaps: Sequence[int]) -> dict[str, object]:
    if not gaps:
        return {}
    shares = {"median": 0.5, "p99": 0.99, "most": 1.0}
    return {
        f"from the last dependency's end to a subtask's start{when} (ms, {name})": gaps[
            min(len(gaps) - 1, int(len(gaps) * share))
        ]
        for name, share in shares.items()
    } | {f"subtasks that waited for others{when}": len(gaps)}
