"""The example runs as its README says, from outside this project, with real processes."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from posthouse.embedded.ports import free_ports
from posthouse.embedded.stack import STAND_IN, lay_out, opened
from posthouse.settings import Settings

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "post_office"
LIMIT_SECONDS = 30.0


@dataclass
class PostOffice:
    """The service with the example, and the model behind it."""

    http: httpx.AsyncClient
    model: httpx.AsyncClient

    async def run(self, workflow: str, **request: str) -> dict[str, Any]:
        """The record of a run that has ended."""
        wanted = {"workflow": workflow, "input": request}
        accepted = await self.http.post("/api/v1/runs", json=wanted)
        assert accepted.status_code == 202, accepted.text
        url = f"{accepted.headers['Location']}/wait"
        record = (await self.http.get(url, params={"timeout": LIMIT_SECONDS})).json()
        assert record["ended_at"] is not None
        return dict(record)

    async def events(self, run_id: str, type: str) -> list[dict[str, Any]]:
        """The data of a run's events of one type."""
        page = (await self.http.get(f"/api/v1/runs/{run_id}/events", params={"limit": 500})).json()
        return [event["data"] for event in page["events"] if event["type"] == type]

    async def tell(self, *calls: tuple[str, dict[str, object]]) -> None:
        """Which tools the model calls next."""
        told = [{"name": name, "arguments": arguments} for name, arguments in calls]
        behaviours = [{"type": "tool_calls", "calls": told}]
        answer = await self.model.post("/control/script", json={"behaviours": behaviours})
        assert answer.status_code == 204, answer.text


@pytest.fixture(scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostOffice]:
    """A stack with a copy of the example that lies elsewhere."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(EXAMPLE, folder / "post_office")
    (folder / "corpus").mkdir()
    (folder / "corpus" / "page.md").write_text("# A page")
    settings = Settings(
        _env_file=None,
        libraries="post_office",
        corpus=folder / "corpus",
        data_dir=folder / "data",
        port=free_ports(1)[0],
        workers=1,
    )
    path = os.pathsep.join((str(folder), *sys.path))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", path)
        layout = lay_out(settings, any_port=True)
        assert layout.joining.env["POSTHOUSE_LIBRARIES"] == "post_office"
        assert str(folder) in layout.joining.env["PYTHONPATH"].split(os.pathsep)
        port = next(p.argv[-1] for p in layout.processes if p.name == STAND_IN)
        with opened(layout, print) as stack:
            async with (
                stack,
                httpx.AsyncClient(
                    base_url=layout.api_url, timeout=LIMIT_SECONDS + 5, trust_env=False
                ) as http,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as model,
            ):
                yield PostOffice(http, model)


async def test_its_agent_calls_its_tool_and_its_workflow_completes(office: PostOffice) -> None:
    run = await office.run("price_letter", letter="a card to Rome")
    assert run["status"] == "completed", run
    [completed] = await office.events(run["run_id"], "tool.completed")
    assert completed["tool"] == "postage"
    assert completed["result"] == '{"destination":"home","grams":1,"cents":95}'
    assert completed["result"] in run["output"]["answer"]


async def test_what_the_model_says_reaches_the_tool_and_a_failure_reaches_the_model(
    office: PostOffice,
) -> None:
    await office.tell(
        ("postage", {"destination": "abroad", "grams": 30}),
        ("postage", {"destination": "abroad", "grams": 3000}),
        ("postage", {"destination": "moon", "grams": 1}),
    )
    run = await office.run("price_letter", letter="30 grams to Rome")
    assert run["status"] == "completed", run
    [completed] = await office.events(run["run_id"], "tool.completed")
    assert json.loads(completed["result"])["cents"] == 180
    failed = await office.events(run["run_id"], "tool.failed")
    assert sorted(failure["error"] for failure in failed) == ["invalid_arguments", "too_heavy"]


async def test_its_agent_may_use_no_tool_that_it_does_not_name(office: PostOffice) -> None:
    await office.tell(("search_web", {"query": "postage"}))
    run = await office.run("price_letter", letter="a card to Rome")
    failed = await office.events(run["run_id"], "tool.failed")
    assert [failure["error"] for failure in failed] == ["unknown_tool"]


async def test_what_comes_with_posthouse_is_still_there(office: PostOffice) -> None:
    listed = (await office.http.get("/api/v1/workflows")).json()["workflows"]
    assert {"price_letter", "research"} <= {definition["name"] for definition in listed}


def test_its_readme_is_short_and_true() -> None:
    text = (EXAMPLE / "README.md").read_text()
    [block] = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    up, curl = (shlex.split(line) for line in block.splitlines())
    assert up[:2] == [f"POSTHOUSE_LIBRARIES={EXAMPLE.name}", f"PYTHONPATH={EXAMPLE.parent.name}"]
    body = json.loads(curl[-1])
    assert body["workflow"] == "price_letter"
    assert list(body["input"]) == ["letter"]
    for named in re.findall(r"`([a-z_/-]+\.(?:py|md))`", text):
        assert (EXAMPLE / named).is_file() or (ROOT / named).is_file(), named
