import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from posthouse.embedded.standin.__main__ import main
from posthouse.embedded.standin.serve import listen, url_of

LIMIT = 20.0


@asynccontextmanager
async def process(*options: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    command = [sys.executable, "-m", "posthouse.embedded.standin", *options]
    pipe = asyncio.subprocess.PIPE
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=env)
    try:
        assert started.stdout is not None
        async with asyncio.timeout(LIMIT):
            yield started, (await started.stdout.readline()).decode().strip()
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_is_and_stops_at_once(number: signal.Signals) -> None:
    async with process("--port", "0") as (standin, url), httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/v1/models")).status_code == 200
        held = {"behaviours": [{"type": "hold", "name": "for ever"}]}
        await http.post("/control/script", json=held)
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            assert (await anext(lines)).startswith("data: {")
            standin.send_signal(number)
            with pytest.raises(httpx.TransportError):
                await _drained(lines)
        assert await standin.wait() == 0
        assert standin.stderr is not None
        assert await standin.stderr.read() == b""


async def _drained(lines: AsyncIterator[str]) -> None:
    async for _ in lines:
        pass


async def test_a_taken_port_is_one_line() -> None:
    listening = listen("127.0.0.1", 0)
    port = url_of(listening).rpartition(":")[2]
    with listening:
        async with process("--port", port) as (standin, line):
            assert line == ""
            assert await standin.wait() == 1
            assert standin.stderr is not None
            said = (await standin.stderr.read()).decode()
    assert said.startswith(f"standin: cannot listen on 127.0.0.1:{port}: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--port", "x"],
        ["--port", "65536"],
        ["--latency-ms", "-1"],
        ["--token-ms", "nan"],
        ["--what"],
    ],
)
def test_wrong_options_are_one_line(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
