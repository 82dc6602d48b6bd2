"""A worker process on its own: what it says at its start, without Redis, and with wrong settings."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from posthouse.errors import ConfigurationError
from posthouse.settings import Settings
from tests.starts import Starter
from worker_app.main import stock_worker_settings


def environment(**settings: str) -> dict[str, str]:
    root = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"} | settings


@asynccontextmanager
async def worker(tmp_path: Path, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    env = environment(**settings)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker_app", cwd=tmp_path, env=env, stderr=asyncio.subprocess.PIPE
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def said(process: asyncio.subprocess.Process, event: str) -> dict[str, object]:
    async with asyncio.timeout(20):
        assert process.stderr is not None
        async for text in process.stderr:
            line = json.loads(text)
            if line["event"] == event:
                return dict(line)
    pytest.fail(f"it never said {event}")


async def test_it_says_who_it_is_and_that_redis_is_away_and_back(tmp_path: Path, valkey) -> None:
    valkey.stop()
    given = {"REDIS_URL": valkey.url, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    async with worker(tmp_path, **given, POSTHOUSE_LEASE_SECONDS="1") as process:
        started = await said(process, "worker_started")
        assert started["workflows"] == ["agent", "orchestrator", "research"]
        assert "redis_away" in str(await said(process, "redis_away"))
        await asyncio.to_thread(valkey.start)
        await said(process, "redis_back")
        await asyncio.to_thread(valkey.kill)
        await said(process, "redis_away")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            assert await process.wait() == 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {},
            "no model: set OPENAI_API_KEY, OPENAI_BASE_URL, ANTHROPIC_API_KEY or POSTHOUSE_ENDPOINTS",
        ),
        ({"OPENAI_API_KEY": "x", "REDIS_URL": "foo://"}, "REDIS_URL"),
        ({"OPENAI_API_KEY": "x", "POSTHOUSE_LEASE_SECONDS": "soon"}, "POSTHOUSE_LEASE_SECONDS"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    tmp_path: Path, starter: Starter, settings: dict[str, str], line: str
) -> None:
    done = starter.run("worker_app", env=environment(**settings), cwd=tmp_path)
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2


async def test_a_redis_that_may_lose_runs_is_one_line_and_exit_code_2(
    tmp_path: Path, valkey
) -> None:
    async with Redis.from_url(valkey.url) as redis:
        await redis.config_set("appendonly", "no")
    given = {"REDIS_URL": valkey.url, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    async with worker(tmp_path, **given) as process:
        _, text = await process.communicate()
        assert text.startswith(b"posthouse: the Redis of REDIS_URL loses all runs")
        assert text.count(b"\n") == 1
        assert process.returncode == 2
    async with worker(tmp_path, **given, POSTHOUSE_UNSAFE_REDIS="1") as process:
        assert (await said(process, "redis_unfit"))["level"] == "warning"
        await said(process, "worker_started")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            assert await process.wait() == 0


async def test_no_line_shows_the_password_of_sentinels(tmp_path: Path, free_tcp_port: int) -> None:
    url = f"redis+sentinel://courier:s3cret@127.0.0.1:{free_tcp_port}/cell"
    given = {"REDIS_URL": url, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    async with worker(tmp_path, **given) as process:
        started = await said(process, "worker_started")
        assert started["redis"] == f"redis+sentinel://***@127.0.0.1:{free_tcp_port}/cell"
        assert "s3cret" not in str(await said(process, "redis_away"))


def test_the_stock_command_says_that_it_cannot_ask_sentinels() -> None:
    settings = Settings(_env_file=None, redis_url="redis+sentinel://host/cell")
    with pytest.raises(ConfigurationError, match="the stock arq command cannot ask sentinels"):
        stock_worker_settings(settings)
