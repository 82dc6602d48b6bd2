import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

ROOT = Path(__file__).parents[2]


def environment(**settings: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path} | settings


def test_importing_the_api_loads_no_agent_and_no_sdk():
    code = (
        "import sys, api_app.main, api_app.__main__\n"
        "bad = ('openai', 'arq', 'posthouse.agents', 'posthouse.tools', 'posthouse.engine',"
        " 'posthouse.llm.providers', 'posthouse.embedded')\n"
        "print([name for name in bad if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "wrong", [{"POSTHOUSE_PORT": "many"}, {"REDIS_URL": "http://x"}, {"POSTHOUSE_LOG_LEVEL": "x"}]
)
def test_wrong_settings_are_one_line_and_code_2(starter, tmp_path, wrong):
    done = starter.run("api_app", env=environment(**wrong), cwd=tmp_path)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert next(iter(wrong)) in done.stderr


@asynccontextmanager
async def started(url: str, port: int, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api_app",
        env=environment(REDIS_URL=url, POSTHOUSE_PORT=str(port), POSTHOUSE_UNSAFE_REDIS="1"),
        cwd=folder, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b"running on" not in (await process.stderr.readline()):
                assert process.returncode is None
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_stops_quickly_with_an_open_stream(
    redis: Redis, valkey_url, free_tcp_port, tmp_path, scribe, number
):
    base = f"http://127.0.0.1:{free_tcp_port}"
    path = f"/api/v1/runs/{scribe.run_id}/stream"
    async with (
        started(valkey_url, free_tcp_port, tmp_path) as process,
        httpx.AsyncClient(base_url=base, timeout=10) as client,
        client.stream("GET", path) as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == "retry: 2000"
        began = time.monotonic()
        process.send_signal(number)
        _ = [line async for line in lines]
        async with asyncio.timeout(10):
            assert await process.wait() == 0
        assert time.monotonic() - began < 2.5
