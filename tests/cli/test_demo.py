"""`posthouse demo` and `posthouse up` as a new user runs them, and nothing is left behind."""

import asyncio
import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from posthouse.embedded.ports import free_ports
from posthouse.storage import keys

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes through /proc"),
]

LIMIT_SECONDS = 120.0

PAGES = {
    "leases.md": """# Leases
        A worker holds a run by a lease of a few seconds and renews it with a heartbeat. When the
        worker dies, the lease ends, and another worker takes the run on from its last step.""",
    "journal.md": """# The journal
        Each completed step of a run is in the journal. A worker that takes a run on after a death
        reads the journal, so that no completed step of the dead worker is executed again.""",
    "fence.md": """# The fence
        Every claim of a run raises its epoch. A write of a worker with an old epoch is refused,
        so a worker that was only thought to be dead cannot harm the run.""",
}


@pytest.fixture
def alone(environment: dict[str, str]) -> dict[str, str]:
    """With one worker, where a second would show nothing more."""
    return environment | {"POSTHOUSE_WORKERS": "1"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, text in PAGES.items():
        (corpus / name).write_text("\n".join(line.strip() for line in text.splitlines()))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "POSTHOUSE_CORPUS": str(corpus),
        "POSTHOUSE_DATA_DIR": str(tmp_path / "data"),
        "POSTHOUSE_PORT": str(free_ports(1)[0]),
    }


def processes_of(environment: dict[str, str]) -> list[str]:
    """Command lines of all processes that work in the data folder of this test."""
    mark = environment["POSTHOUSE_DATA_DIR"]
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            # Valkey writes its title over its environment, but it works in its folder.
            marks = (entry / "environ").read_bytes(), os.fsencode((entry / "cwd").readlink())
            if any(mark.encode() in text for text in marks):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@asynccontextmanager
async def command(
    environment: dict[str, str], *words: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "posthouse.cli.main", *words),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def read_until(stream: asyncio.StreamReader | None, words: str) -> str:
    assert stream is not None
    lines = []
    async for line in stream:
        lines.append(line.decode())
        if words in lines[-1]:
            return "".join(lines)
    pytest.fail(f"it ended without {words!r}:\n" + "".join(lines))


async def test_demo_shows_events_and_a_report_with_its_sources(environment: dict[str, str]) -> None:
    async with command(environment, "demo") as process:
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert len(re.findall(r"\bfirst\b.* after \d+ ms", text)) == 1, text
    assert re.search(r"^  completed in .* · the first after \d+ ms · ", text, re.MULTILINE), text
    assert "run.completed" not in text
    report, _, read = text.partition("What was read")
    sources = set(re.findall(r"\S+\.md\b", read))
    assert len(sources) >= 2, text
    assert sum(source in report.partition("\n  Report")[2] for source in sources) >= 2, text
    assert "not a language model" in text
    assert processes_of(environment) == []


async def test_demo_orchestrate_shows_a_plan_an_approval_and_the_workers(
    environment: dict[str, str],
) -> None:
    async with command(environment, "demo-orchestrate") as process:
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert "asks a person (plan)" in text
    assert "approved by this command" in text
    assert re.search(r"^  completed in .* · 3 subtasks · on 2 workers$", text, re.MULTILINE), text
    assert re.search(r"^  comparison \(analyst\) after first-aspect, second-aspect$", text, re.M), (
        text
    )
    assert re.search(r"^  all( +[\d,]+){4} +unknown$", text, re.MULTILINE), text
    assert len(set(re.findall(r"\S+\.md\b", text.partition("What was read")[2]))) >= 2, text
    assert processes_of(environment) == []


async def test_up_stays_until_it_is_told_to_stop(alone: dict[str, str]) -> None:
    async with command(alone, "up") as process:
        text = await read_until(process.stdout, "Ctrl-C stops everything")
        url = f"http://127.0.0.1:{alone['POSTHOUSE_PORT']}"
        assert f"curl -X POST {url}/api/v1/runs -d '{{" in text
        assert f"curl -N {url}/api/v1/runs/RUN_ID/stream" in text
        assert re.search(
            r"^  Model {8,}the stand-in model at http://127\S+/v1, ", text, re.MULTILINE
        )
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{url}/health/ready")).status_code == 200
        assert len(processes_of(alone)) >= 6
        process.send_signal(signal.SIGINT)  # SIGTERM: below
        assert await process.wait() == 0
    assert processes_of(alone) == []


async def test_two_signals_end_it_at_once(alone: dict[str, str]) -> None:
    async with command(alone, "up") as process:
        await read_until(process.stdout, "Ctrl-C stops everything")
        process.send_signal(signal.SIGINT)
        await read_until(process.stdout, "stopping")
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert processes_of(alone) == []


async def test_the_line_for_one_more_worker_starts_one_on_this_stack(
    alone: dict[str, str],
) -> None:
    bare = dict(alone)
    async with command(alone, "up") as process:
        text = await read_until(process.stdout, "Ctrl-C stops everything")
        line = next(line for line in text.splitlines() if line.endswith(" -m worker_app"))
        given = dict(word.split("=", 1) for word in shlex.split(line)[:-3])
        assert given["POSTHOUSE_CORPUS"] == alone["POSTHOUSE_CORPUS"]
        del bare["POSTHOUSE_CORPUS"]
        worker = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", f"exec env {line.strip()}"), env=bare
        )
        try:
            async with Redis.from_url(given["REDIS_URL"]) as redis:
                while len(await redis.keys(keys.worker("*"))) < 2:
                    assert worker.returncode is None
                    await asyncio.sleep(0.05)
        finally:
            worker.terminate()
            assert await worker.wait() == 0
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert processes_of(alone) == []


async def test_with_a_redis_of_ones_own_its_faults_are_said_and_no_data_is_claimed(
    alone: dict[str, str], valkey: Any
) -> None:
    async with Redis.from_url(valkey.url) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
    given = {"REDIS_URL": valkey.url, "POSTHOUSE_PORTT": "1", "POSTHOUSE_UNSAFE_REDIS": "1"}
    async with command(alone | given, "up") as process:
        text = await read_until(process.stdout, "Ctrl-C stops everything")
        before, _, facts = text.partition("starting stand-in, api")
        assert f"Redis at {valkey.url} may throw runs away" in before
        assert "POSTHOUSE_PORTT is not a setting" in before
        process.send_signal(signal.SIGTERM)
        facts += await read_until(process.stdout, "stopped")
        assert await process.wait() == 0
    assert "data" not in facts.replace(alone["POSTHOUSE_DATA_DIR"], "").lower()
    assert "the log stays in" in facts
    assert processes_of(alone) == []
