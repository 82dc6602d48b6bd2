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


@asynccontextmanager
async def worker(tmp_path: Path, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    root = Path(__file__).parents[2]
    env = dict(os.environ) | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"} | settings
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
        assert started["workflows"] == ["research"]
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
        ({}, "no model: set OPENAI_API_KEY or OPENAI_BASE_URL"),
        ({"OPENAI_API_KEY": "x", "REDIS_URL": "foo://"}, "REDIS_URL"),
        ({"OPENAI_API_KEY": "x", "POSTHOUSE_LEASE_SECONDS": "soon"}, "POSTHOUSE_LEASE_SECONDS"),
    ],
)
async def test_a_wrong_setting_is_one_line_and_exit_code_2(
    tmp_path: Path, settings: dict[str, str], line: str
) -> None:
    async with worker(tmp_path, **settings) as process:
        _, text = await process.communicate()
        assert line in text.decode()
        assert text.decode().count("\n") == 1
        assert process.returncode == 2
