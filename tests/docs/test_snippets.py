"""What README and docs show works: Python runs, curl lines fit the routes, JSON has the shapes that it shows."""

import ast
import asyncio
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError

from api_app import inputs, schedules, schemas
from api_app.main import create_app
from api_app.problems import Problem
from posthouse.cli.main import app as posthouse
from posthouse.embedded.standin.app import create_app as create_standin
from posthouse.events.types import EVENT
from posthouse.llm.retry import RetryPolicy
from posthouse.runs.model import RunRecord, Status
from posthouse.settings import Settings
from posthouse.workflows.catalogue import library

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)[ ]?(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"bash", "html", "json", "python", "text"}
API_PORT, STANDIN_PORT = 8000, 9100
RUN_ID = "01K0000000000000000000000A"
ENVELOPE = {"seq", "type", "run_id", "epoch", "time", "agent", "step", "data"}


@dataclass(frozen=True)
class Snippet:
    """One fenced block, and where it stands."""

    page: str
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class Curl:
    """What a curl line asks for, and where it stands."""

    place: str
    url: httpx.URL = field(default_factory=httpx.URL)
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None

    def __str__(self) -> str:
        return self.place


def snippets_of(page: Path) -> list[Snippet]:
    text = page.read_text()
    return [
        Snippet(page.name, text.count("\n", 0, found.start()) + 1, *found.groups())
        for found in FENCE.finditer(text)
    ]


SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page)]


def of(language: str, mark: str | None = None) -> list[Snippet]:
    return [s for s in SNIPPETS if s.language == language and mark in (None, s.mark)]


def commands(snippet: Snippet) -> Iterator[list[str]]:
    """The shell commands of a block; one may go on over lines by a quote or a backslash."""
    begun = ""
    for line in snippet.text.splitlines():
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quote that is still open
            begun += "\n"
            continue
        begun = ""
        if words:
            yield words
    assert not begun, f"{snippet}: a quote is left open"


def curl_of(words: list[str], place: str) -> Curl:
    curl = Curl(place)
    method = ""
    rest = iter(words[1:])
    for word in rest:
        match word:
            case "-X":
                method = next(rest)
            case "-d":
                curl.body = next(rest)
            case "-H":
                name, _, value = next(rest).partition(": ")
                curl.headers[name] = value
            case "-N" | "-i":
                pass
            case _:
                assert curl.url == httpx.URL(), f"what is {word!r}?"
                curl.url = httpx.URL(word)
    curl.method = method or ("GET" if curl.body is None else "POST")
    return curl


CURLS = [
    curl_of(command, f"{snippet}-{number}")
    for snippet in of("bash")
    for number, command in enumerate(commands(snippet))
    if command[0] == "curl"
]
API_CURLS = [curl for curl in CURLS if curl.url.port == API_PORT]
STANDIN_CURLS = [curl for curl in CURLS if curl.url.port == STANDIN_PORT]


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(_env_file=None))


def test_every_block_says_what_it_is() -> None:
    assert [str(s) for s in SNIPPETS if s.language not in LANGUAGES] == []
    fences = sum(page.read_text().count("\n```") for page in PAGES)
    assert fences == 2 * len(SNIPPETS)
    assert len(API_CURLS) + len(STANDIN_CURLS) == len(CURLS) > 20


@pytest.mark.parametrize("page", sorted({s.page for s in of("python")}))
def test_python_runs(page: str, request: pytest.FixtureRequest) -> None:
    """The blocks of a page share their names; `run` ones are executed, then the tests in them."""
    snippets = [s for s in of("python") if s.page == page]
    module = ModuleType("docs_" + page.removesuffix(".md").replace("-", "_"))
    sys.modules[module.__name__] = module
    passed = set()
    try:
        for snippet in snippets:
            code = compile(snippet.text, str(snippet), "exec")
            if snippet.mark == "run":
                exec(code, vars(module))
            else:
                _import_what_it_imports(snippet)
        for name, test in list(vars(module).items()):
            if name.startswith("test_"):
                wanted = {arg: request.getfixturevalue(arg) for arg in _arguments(test)}
                asyncio.run(test(**wanted))
                passed.add(name)
    finally:
        del sys.modules[module.__name__]
    defined = {name for s in snippets if s.mark == "run" for name in _functions_in(s)}
    assert defined <= set(vars(module))
    assert passed == {name for name in defined if name.startswith("test_")}


def _functions_in(snippet: Snippet) -> set[str]:
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.parse(snippet.text).body if isinstance(node, functions)}


def _arguments(test: Any) -> list[str]:
    return list(inspect.signature(test).parameters)


def _import_what_it_imports(snippet: Snippet) -> None:
    tree = ast.parse(snippet.text)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(tree, str(snippet), "exec"), {})


@pytest.mark.parametrize("curl", API_CURLS, ids=str)
def test_a_curl_line_fits_the_api(curl: Curl, app: FastAPI) -> None:
    path = curl.url.path.replace("RUN_ID", RUN_ID)
    operation = _operation(app.openapi()["paths"], path, curl.method)
    known = {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"}
    assert set(curl.url.params) <= known
    taken = {p["name"].lower() for p in operation.get("parameters", []) if p["in"] == "header"}
    assert {name.lower() for name in curl.headers} <= taken | {"content-type"}
    assert ("requestBody" in operation) == (curl.body is not None)
    if curl.body is not None:
        _check_body(operation, curl.body)


def _operation(paths: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    for template, operations in paths.items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in operations:
            found: dict[str, Any] = operations[method.lower()]
            return found
    pytest.fail(f"there is no route {method} {path}")


def _check_body(operation: dict[str, Any], body: str) -> None:
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    name = reference.rpartition("/")[2]
    models = (getattr(module, name, None) for module in (schemas, schedules, inputs))
    model: type[BaseModel] = next(filter(None, models))
    try:
        wanted = model.model_validate_json(body)
        if isinstance(wanted, schemas.RunRequest | schedules.ScheduleRequest):
            library()[wanted.workflow].input_model.model_validate(wanted.input)
    except ValidationError as error:
        pytest.fail(str(error))


async def test_the_stand_in_takes_its_curl_lines() -> None:
    transport = httpx.ASGITransport(create_standin())
    async with httpx.AsyncClient(transport=transport, base_url="http://standin") as http:
        for curl in STANDIN_CURLS:
            answer = await http.request(curl.method, curl.url.path, content=curl.body)
            assert answer.is_success, f"{curl}: {answer.text}"


def test_the_faults_that_are_shown_pass_by_themselves() -> None:
    [script] = [curl.body for curl in STANDIN_CURLS if curl.url.path == "/control/script"]
    assert script is not None
    faults = sum(behaviour["times"] for behaviour in json.loads(script)["behaviours"])
    assert 0 < faults < RetryPolicy().attempts


SETTINGS = {str(field.validation_alias) for field in Settings.model_fields.values()}


@pytest.mark.parametrize("snippet", of("bash"), ids=str)
def test_a_command_is_there(snippet: Snippet) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(snippet):
        given = [word for word in command if re.match(r"[A-Z_]+=", word)]
        names = {word.partition("=")[0] for word in given}
        assert {name for name in names if name.startswith("POSTHOUSE_")} <= SETTINGS
        words = [word for word in command if word not in given]
        match words:
            case ["make", *wanted]:
                assert set(wanted) <= set(targets)
            case ["python", "-m", module, *_]:
                assert find_spec(module) is not None
            case ["cp", source, _]:
                assert (ROOT / source).is_file()
            case ["docker", *rest]:
                assert "worker=4" in rest
                assert "worker:" in (ROOT / "docker-compose.yml").read_text()
            case ["arq", place]:
                module, _, name = place.rpartition(".")
                assert find_spec(module) is not None
                assert name == "WorkerSettings"
            case [".venv/bin/posthouse", name, *_]:
                known = {info.callback.__name__ for info in posthouse.registered_commands}
                assert name.replace("-", "_") in known
            case ["curl" | "export" | "kill", *_] | []:
                pass
            case _:
                pytest.fail(f"{snippet}: nobody checks {words}")


@pytest.mark.parametrize("snippet", of("json"), ids=str)
def test_json_has_the_shape_that_it_shows(snippet: Snippet) -> None:
    value = json.loads(snippet.text)
    match snippet.mark:
        case "problem":
            assert Problem.model_validate(value).model_dump(exclude_none=True) == value
        case "event":
            assert set(value) == ENVELOPE
            event = EVENT.validate_python({"type": value["type"], **value["data"]})
            assert json.loads(event.data_json()) == value["data"]
        case "run":
            assert list(value) == list(schemas.run_view(_some_run(), []))
        case _:
            assert snippet.mark == ""


def _some_run() -> RunRecord:
    return RunRecord(
        run_id=RUN_ID, tenant="default", workflow="research", version=1, status=Status.COMPLETED,
        input={}, epoch=1, seq=1, dispatch=1, root=RUN_ID, created_at=0, updated_at=0,
    )  # fmt: skip
