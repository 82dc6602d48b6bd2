"""SIGTERM, to a worker or to everything: runs are handed on at once, and nothing is left running."""

import asyncio
import os
import signal
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from posthouse import clock
from posthouse.embedded.ports import free_ports
from posthouse.embedded.standin.serve import serve_standin

pytestmark = pytest.mark.guarantee("G7")

LIMIT_SECONDS = 40.0


async def test_a_worker_that_is_told_to_stop_hands_its_run_on(road, topic):
    await road.model.tell({"type": "hold", "name": "door"})
    run_id = await road.submit(topic())
    async with road.reading(run_id) as reader:
        started = await reader.until("run.started")
        owner = road.worker_of(started)
        await road.model.held()
        told_at = road.hurt(owner, signal.SIGTERM)
        resumed = await reader.until("run.resumed")
        assert resumed.data["data"]["reason"] == "drain"  # given back: no lease had to run out
        assert resumed.data["data"]["worker"] != started.data["data"]["worker"]
        print(f"\nhanded on {resumed.at - told_at:.2f} s after SIGTERM, with a drain of 1.5 s")
        await reader.end()
    record, log = await road.ended(run_id), await road.log(run_id)
    assert (record["status"], record["epoch"]) == ("completed", 2)
    types = Counter(event["type"] for event in log)
    assert types["run.resumed"] == types["run.started"] == types["run.completed"] == 1
    assert sorted((await road.model.fingerprints()).values()) == [1, 1, 2]
    await road.heard(f"{owner} ended with exit code 0")


async def test_a_step_that_ends_within_the_drain_is_kept(road, topic):
    await road.model.tell({"type": "hold", "name": "door"})
    run_id = await road.submit(topic())
    async with road.reading(run_id) as reader:
        owner = road.worker_of(await reader.until("run.started"))
        await road.model.held()
        road.hurt(owner, signal.SIGTERM)
        await road.logged(owner, '"stopping"', '"running": 1')
        await road.model.release("door")
        await reader.end()
    record = await road.ended(run_id)
    assert (record["status"], record["epoch"]) == ("completed", 2)
    assert set((await road.model.fingerprints()).values()) == {1}
    [resumed] = [m for m in reader.seen if m.type == "run.resumed"]
    assert resumed.data["data"]["reason"] == "drain"


async def test_the_stock_arq_command_carries_runs(new_road, tmp_path, topic):
    def stock(process):
        if not process.name.startswith("worker"):
            return process
        argv = (sys.executable, "-m", "arq", "worker_app.main.WorkerSettings")
        return replace(process, argv=argv)

    async with new_road(tmp_path, workers=1, adapt=stock) as road:
        runs = [await road.submit(topic(), depth) for depth in ("deep", "standard")]
        for run_id in runs:
            record = await road.ended(run_id)
            assert record["status"] == "completed"
            assert len(record["output"]["sources"]) >= 2
            types = Counter(event["type"] for event in await road.log(run_id))
            assert types["run.started"] == types["run.completed"] == 1
        assert set((await road.model.fingerprints()).values()) == {1}


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes through /proc")
async def test_everything_stops_in_the_middle_of_a_run_and_goes_on_with_it_later(
    corpus, tmp_path, topic
):
    port = free_ports(1)[0]
    api = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False, timeout=40)
    async with asyncio.timeout(LIMIT_SECONDS), serve_standin() as model, api as http:
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OPENAI_BASE_URL": f"{model}/v1",
            "POSTHOUSE_CORPUS": str(corpus),
            "POSTHOUSE_DATA_DIR": str(tmp_path / "data"),
            "POSTHOUSE_PORT": str(port),
            "POSTHOUSE_WORKERS": "1",
            "POSTHOUSE_DRAIN_SECONDS": "0.2",
        }
        hold = {"behaviours": [{"type": "hold", "name": "door"}]}
        await http.post(f"{model}/control/script", json=hold)
        async with up(env):
            wanted = {"topic": topic(), "depth": "deep"}
            answer = await http.post("/workflows/research", json=wanted)
            run_id = answer.json()["workflow_id"]
            async with http.stream("GET", f"/runs/{run_id}/stream") as feed:
                assert "turn.started" in [line async for line in until(feed, "turn.started")][-1]
            await asked(http, model)  # else it is the next worker that is kept waiting
        assert left_behind(tmp_path) == []
        async with up(env):
            record = (await http.get(f"/runs/{run_id}/wait?timeout=30")).json()
            assert record["status"] == "completed"
            log = (await http.get(f"/runs/{run_id}/events")).json()["events"]
        assert left_behind(tmp_path) == []
    assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
    assert [e["data"]["reason"] for e in log if e["type"] == "run.resumed"] == ["drain"]


async def asked(http, model):
    """Returns when the model holds an answer."""
    while not any(r["held"] for r in (await http.get(f"{model}/control/requests")).json()):
        await clock.sleep(0.02)


async def until(feed, words):
    """The lines of a response up to the one that has the words."""
    async for line in feed.aiter_lines():
        yield line
        if words in line:
            return


@asynccontextmanager
async def up(env):
    """`posthouse up`, ready; ended by SIGTERM, with exit code 0."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "posthouse.cli.main", "up"),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said = b""
        while b"Ctrl-C stops everything" not in said:
            line = await process.stdout.readline()
            assert line, said.decode()
            said += line
        yield process
        process.terminate()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def left_behind(folder):
    """Command lines of the processes that still work in the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            # Valkey writes its title over its environment, but it works in its folder.
            marks = (entry / "environ").read_bytes(), os.fsencode((entry / "cwd").readlink())
            if any(os.fsencode(folder) in text for text in marks):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found
