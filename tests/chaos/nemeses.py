"""What hurts the service. Each fault says in words what work it hit, or None: then it does not count."""

import asyncio
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from tests.chaos.nursery import Worker
from tests.chaos.stack import Stack
from tests.chaos.workload import Clients

HOUR = 3600
STALE_WAIT_SECONDS = 8.0
# What was measured while Redis was full is what is believed until somebody measures again.
SHED_SECONDS = 10.0


@dataclass
class Scene:
    """What a nemesis works on, and what it leaves for the checker."""

    stack: Stack
    clients: Clients
    frozen: list[tuple[int, float, float]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)

    async def owned(self) -> dict[int, dict[str, str]]:
        """By process: the runs that it owns now, each with its fence."""
        live = self.clients.live
        found: dict[int, dict[str, str]] = {}
        for run, (owner, epoch, claim) in zip(live, await self._owners(live), strict=True):
            if owner and claim:
                pid = int(owner.decode().split("-")[-2])
                found.setdefault(pid, {})[run] = f"{epoch.decode()}:{claim.decode()}"
        return found

    async def _owners(self, runs: list[str]) -> list[list[bytes | None]]:
        """Owner, epoch and claim of each; another fault may keep Redis away for a while."""
        until = time.monotonic() + 15
        while True:
            try:
                pipe = self.stack.redis.pipeline(transaction=False)
                for run in runs:
                    pipe.hmget(f"run:{run}", "owner", "epoch", "claim")
                return list(await pipe.execute()) if runs else []
            except (RedisError, OSError):
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)

    async def still(self, held: dict[str, str]) -> list[str]:
        """Those runs whose fence is what it was."""
        now = {run: fence for runs in (await self.owned()).values() for run, fence in runs.items()}
        return [run for run, fence in held.items() if now.get(run) == fence]

    async def victim(self, chance: random.Random) -> tuple[Worker, dict[str, str]] | None:
        """A worker that owns a run, and what it owns; None when there is none within two seconds."""
        for _ in range(20):
            owned = await self.owned()
            busy = [
                worker
                for worker in self.stack.workers
                if worker.pid in owned and worker.pid not in self.taken and worker.alive
            ]
            if busy:
                worker = chance.choice(busy)
                self.taken.add(worker.pid)
                return worker, owned[worker.pid]
            await asyncio.sleep(0.1)
        return None


Nemesis = Callable[[Scene, random.Random], Awaitable[str | None]]


async def kill_worker(scene: Scene, chance: random.Random) -> str | None:
    """SIGKILL to a worker that owns runs; a new one is started."""
    chosen = await scene.victim(chance)
    if chosen is None:
        return None
    worker, held = chosen
    worker.send(signal.SIGKILL)
    await worker.ended
    orphans = await scene.still(held)
    scene.stack.retire(worker)
    await scene.stack.add_worker()
    return f"{len(orphans)} runs lost their worker" if orphans else None


async def freeze_worker(scene: Scene, chance: random.Random) -> str | None:
    """SIGSTOP for longer than the lease, SIGCONT while a successor works."""
    chosen = await scene.victim(chance)
    if chosen is None:
        return None
    worker, held = chosen
    began = time.time() * 1000
    worker.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(scene.stack.plan.lease * chance.uniform(1.2, 3.0))
        kept = await scene.still(held)
    finally:
        worker.send(signal.SIGCONT)
        scene.frozen.append((worker.pid, began, time.time() * 1000))
        scene.taken.discard(worker.pid)
    taken_over = len(held) - len(kept)
    return f"{taken_over} runs went to others while it slept" if taken_over else None


async def deploy(scene: Scene, chance: random.Random) -> str | None:
    """SIGTERM to a worker that owns runs, after its successor was started; it must end by itself, with 0."""
    chosen = await scene.victim(chance)
    if chosen is None:
        return None
    worker, held = chosen
    await scene.stack.add_worker()
    held = {run: held[run] for run in await scene.still(held)}
    worker.send(signal.SIGTERM)
    scene.stack.retire(worker)
    done, _ = await asyncio.wait([worker.ended], timeout=scene.stack.plan.drain + 15)
    if not done or worker.ended.result() != 0:
        how = worker.ended.result() if done else "not at all"
        scene.troubles.append(f"a worker that was told to stop ended with {how}: {worker.log}")
        worker.send(signal.SIGKILL)
    return f"{len(held)} runs were in its hands" if held else None


async def skewed_worker(scene: Scene, chance: random.Random) -> str | None:
    """A worker whose clock is an hour off, before or after, for a few leases; then it is drained."""
    off = chance.choice((-HOUR, HOUR))
    worker = await scene.stack.add_worker(CHAOS_SKEW_SECONDS=str(off))
    scene.taken.add(worker.pid)
    most = 0
    until = time.monotonic() + 5 + 2 * scene.stack.plan.lease
    while time.monotonic() < until:
        most = max(most, len((await scene.owned()).get(worker.pid, {})))
        await asyncio.sleep(0.2)
    worker.send(signal.SIGTERM)
    scene.stack.retire(worker)
    done, _ = await asyncio.wait([worker.ended], timeout=scene.stack.plan.drain + 15)
    if not done or worker.ended.result() != 0:
        scene.troubles.append(f"a worker with a skewed clock did not end well: {worker.log}")
        worker.send(signal.SIGKILL)
    return f"it held {most} runs" if most else None


async def kill_redis_always(scene: Scene, chance: random.Random) -> str | None:
    """Redis is killed at any moment with appendfsync always."""
    await scene.stack.redis.config_set("appendfsync", "always")
    await asyncio.sleep(chance.uniform(0.1, 0.6))
    return await _kill_redis(scene, chance)


async def kill_redis_everysec(scene: Scene, chance: random.Random) -> str | None:
    """Redis is killed with appendfsync everysec, once what was answered is in its file."""
    redis = scene.stack.redis
    await redis.config_set("appendfsync", "everysec")
    await asyncio.sleep(chance.uniform(0.1, 0.6))
    await redis.execute_command("CLIENT", "PAUSE", "3000", "WRITE")
    await redis.execute_command("WAITAOF", "1", "0", "2000")
    return await _kill_redis(scene, chance)


async def _kill_redis(scene: Scene, chance: random.Random) -> str | None:
    owned = await scene.owned()
    waiting = await _calls_in_flight(scene)
    await scene.stack.valkey.kill()
    await asyncio.sleep(chance.uniform(0.0, 1.5))
    await scene.stack.valkey.start()
    await scene.stack.valkey_ready()
    runs = sum(map(len, owned.values()))
    return f"{runs} runs were at work, {waiting} calls in flight" if runs else None


async def _calls_in_flight(scene: Scene) -> int:
    """How many calls of workers are in flight, at a moment when there are some."""
    for _ in range(1000):
        if waiting := scene.stack.for_workers.calls_in_flight:
            return waiting
        await asyncio.sleep(0.001)
    return 0


async def freeze_redis(scene: Scene, chance: random.Random) -> str | None:
    """Redis stands still for one to three seconds."""
    owned = await scene.owned()
    scene.stack.valkey.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(chance.uniform(1.0, 3.0))
        waiting = scene.stack.for_workers.calls_in_flight + scene.stack.for_workers.held_back
    finally:
        scene.stack.valkey.send(signal.SIGCONT)
    await scene.stack.valkey_ready()
    runs = sum(map(len, owned.values()))
    return f"{runs} runs were at work, {waiting} calls waited" if runs and waiting else None


async def fill_redis(scene: Scene, chance: random.Random) -> str | None:
    """Redis may use half of the memory that it uses: it takes nothing new, and what is at work goes on."""
    used = (await scene.stack.redis.info("memory"))["used_memory"]
    answers = scene.clients.answers
    answers.may_shed_until = time.monotonic() + 3600
    try:
        full = ("CONFIG", "SET", "maxmemory", used // 2)
        return await _refusing(scene, chance, "OOM", full, ("CONFIG", "SET", "maxmemory", 0))
    finally:
        answers.may_shed_until = time.monotonic() + SHED_SECONDS


async def read_only_redis(scene: Scene, chance: random.Random) -> str | None:
    """Redis is a replica of nobody for a while, and keeps its data."""
    with socket.socket() as nobody:
        # Bound and not listening: nobody else can listen there and have Redis take his data for its own.
        nobody.bind(("127.0.0.1", 0))
        replica = ("REPLICAOF", "127.0.0.1", nobody.getsockname()[1])
        return await _refusing(scene, chance, "READONLY", replica, ("REPLICAOF", "NO", "ONE"))


async def _refusing(
    scene: Scene,
    chance: random.Random,
    error: str,
    begin: tuple[str | int, ...],
    end: tuple[str | int, ...],
) -> str | None:
    """One to three seconds between two commands, in which Redis refuses writes with that error."""
    redis = scene.stack.redis
    owned, before = await scene.owned(), await _refused(scene, error)
    await redis.execute_command(*begin)
    try:
        await asyncio.sleep(chance.uniform(1.0, 3.0))
        refused = await _refused(scene, error) - before
    finally:
        await redis.execute_command(*end)
    runs = sum(map(len, owned.values()))
    return f"{refused} writes were refused, {runs} runs were at work" if refused and runs else None


async def _refused(scene: Scene, error: str) -> int:
    """How often Redis has answered with that error since it started."""
    told = await scene.stack.redis.info("errorstats")
    return int(told.get(f"errorstat_{error}", {}).get("count", 0))


async def reset_links(scene: Scene, chance: random.Random) -> str | None:
    """Every connection of the workers and of the API to Redis is reset, a few times."""
    hit = await _calls_in_flight(scene)
    scene.stack.for_workers.reset_all()
    scene.stack.for_api.reset_all()
    return f"{hit} calls were in flight" if hit else None


async def silent_links(scene: Scene, chance: random.Random) -> str | None:
    """Connections stay, and nothing comes through for a while."""
    links = scene.stack.for_workers
    before = links.held_back
    owned = await scene.owned()
    links.silence()
    try:
        await asyncio.sleep(chance.uniform(0.5, 2.5) * scene.stack.plan.lease)
        held = links.held_back - before
    finally:
        links.resume()
    runs = sum(map(len, owned.values()))
    return f"{held} calls of {runs} runs were held back" if held and runs else None


async def cut_replies(scene: Scene, chance: random.Random) -> str | None:
    """Some calls reach Redis and their replies do not come back: nobody knows whether they landed."""
    before = scene.stack.for_workers.cut_calls
    scene.stack.for_workers.cut_next(chance.randint(1, 6))
    scene.stack.for_api.cut_next(1)
    await asyncio.sleep(1.0)
    scene.stack.for_api.cut_next(0)
    cut = scene.stack.for_workers.cut_calls - before
    return f"{cut} replies were cut" if cut else None


async def slow_links(scene: Scene, chance: random.Random) -> str | None:
    """Every reply of Redis comes 200 ms late for a while."""
    before = scene.stack.for_workers.delayed
    scene.stack.for_workers.delay_seconds = 0.2
    try:
        await asyncio.sleep(chance.uniform(1.0, 2.0))
    finally:
        scene.stack.for_workers.delay_seconds = 0.0
    slow = scene.stack.for_workers.delayed - before
    return f"{slow} replies were late" if slow else None


async def duplicate_deliveries(scene: Scene, chance: random.Random) -> str | None:
    """The latest dispatch of runs that are at work is written into the queue again, ten times."""
    return await _plant(scene, chance, 0)


async def stale_dispatches(scene: Scene, chance: random.Random) -> str | None:
    """Former dispatches of runs that are at work come back into the queue, some with a clock's time as score."""
    return await _plant(scene, chance, 1)


async def _plant(scene: Scene, chance: random.Random, age: int) -> str | None:
    redis = scene.stack.redis
    owned = [run for runs in (await scene.owned()).values() for run in runs]
    planted = []
    for run in chance.sample(owned, min(len(owned), 4)):
        dispatch = int(await redis.hget(f"run:{run}", "dispatch") or 0) - age
        if dispatch > 0:
            planted.append(f"{run}:{dispatch}")
    for _ in range(10):
        for job in planted:
            run, _, dispatch = job.partition(":")
            body = f'{{"t":null,"f":"execute_run","a":["{run}",{dispatch}],"k":{{}},"et":1}}'
            score = chance.choice((1, 2, time.time() * 1000 + chance.choice((-HOUR, HOUR)) * 1000))
            await redis.set(f"arq:job:{job}", body)
            await redis.zadd("arq:queue", {job: score})
        await redis.lpush("queue:wake", "1")
        await asyncio.sleep(0.1)
    gone = await _taken(scene, planted)
    return f"{gone} runs had their dispatch delivered again" if gone else None


async def _taken(scene: Scene, jobs: list[str]) -> int:
    until = time.monotonic() + STALE_WAIT_SECONDS
    left = jobs
    while left and time.monotonic() < until:
        scores = [await scene.stack.redis.zscore("arq:queue", job) for job in jobs]
        left = [job for job, score in zip(jobs, scores, strict=True) if score is not None]
        await asyncio.sleep(0.1)
    return len(jobs) - len(left)


async def kill_api(scene: Scene, chance: random.Random) -> str | None:
    """The API is killed while clients submit, wait and read."""
    waiting = scene.clients.answers.in_flight
    await scene.stack.api.kill()
    await asyncio.sleep(chance.uniform(0.0, 1.0))
    await scene.stack.api.start()
    await scene.stack.api_ready()
    return f"{waiting} requests were in flight" if waiting else None


NEMESES: dict[str, Nemesis] = {
    "worker killed": kill_worker,
    "worker frozen past its lease": freeze_worker,
    "worker deployed": deploy,
    "worker's clock an hour off": skewed_worker,
    "Redis killed, AOF always": kill_redis_always,
    "Redis killed, AOF everysec": kill_redis_everysec,
    "Redis frozen": freeze_redis,
    "Redis full": fill_redis,
    "Redis read-only": read_only_redis,
    "connections reset": reset_links,
    "connections silent": silent_links,
    "replies cut": cut_replies,
    "replies late": slow_links,
    "duplicate deliveries": duplicate_deliveries,
    "stale dispatches": stale_dispatches,
    "API killed": kill_api,
}
# Those of Redis itself never come together with another.
ON_REDIS = {name for name in NEMESES if name.startswith("Redis ")}


async def inflict(scene: Scene, name: str, seed: int) -> str | None:
    """One fault; an error of the harness's own view of Redis, which another fault took away, proves nothing."""
    try:
        return await NEMESES[name](scene, random.Random(seed))
    except (RedisError, OSError, TimeoutError):
        return None
