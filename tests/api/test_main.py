import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api_app.main import create_default_app
from posthouse.errors import ConfigurationError
from posthouse.storage.fitness import require_fit

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
    "wrong",
    [
        {"POSTHOUSE_PORT": "many"},
        {"REDIS_URL": "http://x"},
        {"POSTHOUSE_LOG_LEVEL": "x"},
        {"POSTHOUSE_ENDPOINTS": "x"},
    ],
)
def test_wrong_settings_are_one_line_and_code_2(starter, tmp_path, wrong):
    done = starter.run("api_app", env=environment(**wrong), cwd=tmp_path)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert next(iter(wrong)) in done.stderr


@pytest.fixture
def by_factory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """The start of the application that uvicorn makes by its factory, with these settings."""

    def starting(**settings: str) -> AbstractAsyncContextManager[Any]:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        app = create_default_app()
        return app.router.lifespan_context(app)

    return starting


async def test_the_factory_refuses_an_unfit_redis_in_the_same_words(valkey, by_factory):
    async with Redis.from_url(valkey.url) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError) as expected:
        await require_fit(valkey.url, unsafe=False)
    with pytest.raises(ConfigurationError) as refused:
        async with by_factory(REDIS_URL=valkey.url):
            pass
    assert str(refused.value) == str(expected.value)
    async with by_factory(REDIS_URL=valkey.url, POSTHOUSE_UNSAFE_REDIS="1"):
        pass


async def test_the_factory_starts_without_a_redis_and_waits_for_it(free_tcp_port, by_factory):
    begun = False
    async with by_factory(REDIS_URL=f"redis://127.0.0.1:{free_tcp_port}"):
        begun = True
    assert begun


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
