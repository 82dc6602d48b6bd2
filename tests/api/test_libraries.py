"""The API process and the libraries of a user: their workflows, and nothing else of them."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx

from posthouse.embedded.ports import free_ports
from posthouse.embedded.probes import answers_http

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 30

WORKFLOW = '''
from pydantic import BaseModel
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow

class Letter(BaseModel):
    text: str

@workflow("post")
async def post(ctx: RunContext, letter: Letter) -> Letter:
    """Posts a letter."""
    return letter
'''
BAD = "raise AssertionError('the API has no business here')\n"


def environment(folder: Path, files: dict[str, str]) -> dict[str, str]:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    return os.environ | {"PYTHONPATH": path, "POSTHOUSE_LIBRARIES": "mine"}


async def test_it_serves_their_workflows_and_imports_no_tool_and_no_agent(
    tmp_path: Path, valkey_url: str
) -> None:
    [port] = free_ports(1)
    files = {f"mine/{part}/__init__.py": BAD for part in ("tools", "agents")}
    env = environment(tmp_path, {**files, "mine/workflows/post.py": WORKFLOW})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api_app"),
        cwd=tmp_path,
        env=env
        | {"REDIS_URL": valkey_url, "POSTHOUSE_PORT": str(port), "POSTHOUSE_UNSAFE_REDIS": "1"},
    )
    ready = answers_http("127.0.0.1", port, "/health/live")
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            while not await ready():
                assert process.returncode is None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            answer = await http.get("/api/v1/workflows/post")
        assert answer.status_code == 200, answer.text
        assert answer.json()["description"] == "Posts a letter."
    finally:
        process.kill()
        await process.wait()


def test_a_workflow_that_cannot_be_imported_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    env = environment(tmp_path, {"mine/workflows/post.py": "import no_such_post\n"})
    done = subprocess.run(
        [sys.executable, "-m", "api_app"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "posthouse: mine.workflows.post cannot be imported: ModuleNotFoundError: "
        "No module named 'no_such_post' (post.py, line 1)\n"
    )
