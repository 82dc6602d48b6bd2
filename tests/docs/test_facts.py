"""What README and docs name is what there is: links, settings, events, codes, keys, metrics, promises."""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from api_app.problems import STATUS
from api_app.schemas import step_view
from posthouse.cli.demo import DEFAULT_TOPIC
from posthouse.control.journal import StepDone
from posthouse.embedded.standin.evidence import Evidence, ReadPage
from posthouse.embedded.standin.prose import sentences
from posthouse.embedded.standin.script import Behaviour
from posthouse.embedded.standin.words import telling
from posthouse.embedded.standin.writer import report
from posthouse.errors import RequestCode, RunCode
from posthouse.events.types import TERMINAL_TYPES, Event
from posthouse.journal.model import Outcome
from posthouse.settings import Settings
from posthouse.storage import keys
from posthouse.telemetry import Metrics
from posthouse.tools.corpus import Corpus
from posthouse.workflows.context import RunContext

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
SETTING = re.compile(
    r"\b(?:POSTHOUSE_[A-Z_]+|OPENAI_[A-Z_]+|REDIS_URL|MAX_AGENT_\w+|\w+_(?:SECONDS|BYTES))\b"
)
PROMISE = re.compile(r"^## (G\d+): .*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
SHOWN_BY = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the table on the page whose first column is so called, without its head."""
    lines = (DOCS / page).read_text().splitlines()
    start = lines.index(next(line for line in lines if line.startswith(f"| {heading} |")))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def column(page: str, heading: str) -> list[str]:
    return [name for row in table(page, heading) for name in named(row[0])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_one_title_and_its_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(re.findall(r"^# \S", text, re.MULTILINE)) == 1
    for link in LINK.findall(text):
        assert "://" not in link, f"{link}: nobody checks it"
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#{1,6} (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_settings_are_those_that_there_are_with_their_defaults() -> None:
    fields = Settings.model_fields.values()
    defaults = {
        str(field.validation_alias): "" if field.default is None else str(field.default)
        for field in fields
    }
    shown = {
        named(name)[0]: default.strip("`")
        for name, default, _ in table("run-and-scale.md", "setting")
    }
    assert shown == defaults
    unknown = {
        f"{page.name}: {name}"
        for page in PAGES
        for name in SETTING.findall(page.read_text())
        if name not in defaults
    }
    assert unknown == set()


def test_the_vocabulary_is_the_vocabulary() -> None:
    classes = get_args(get_args(Event)[0])
    fields = {
        kind.model_fields["type"].default: [name for name in kind.model_fields if name != "type"]
        for kind in classes
    }
    rows = table("stream-events.md", "type")
    assert {named(row[0])[0]: named(row[2]) for row in rows} == fields
    families = "|".join(sorted({name.partition(".")[0] for name in fields}))
    for page in PAGES:
        text = re.sub(r'"location": "[^"]*"', "", page.read_text())
        said = re.findall(rf"[`\"=,]((?:{families})\.[a-z_]+)(?=[`\",])", text)
        assert set(said) <= set(fields), page.name


def test_codes_are_those_that_there_are() -> None:
    requests, runs = (DOCS / "submit-runs.md").read_text().split("### Codes of runs")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", requests, re.MULTILINE)
    assert {code: int(status) for code, status in rows} == {str(c): s for c, s in STATUS.items()}
    assert set(dict(rows)) == set(RequestCode)
    assert set(re.findall(r"^\| `(\w+)` \|", runs, re.MULTILINE)) == set(RunCode)


def test_log_lines_are_those_that_there_are() -> None:
    code = [file for top in ("src", "api_app", "worker_app") for file in (ROOT / top).rglob("*.py")]
    logged = {line for file in code for line in _logged_in(ast.parse(file.read_text()))}
    assert set(column("observe.md", "line")) <= logged


def _logged_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="info" | "warning" | "error" | "exception"),
                args=[ast.Constant(value=str(line)), *_],
            ):
                yield line
            case _:
                pass


def test_a_step_has_the_fields_that_are_said() -> None:
    shown = step_view(StepDone("a", Outcome(seq=1, epoch=1, time=0)))
    assert column("submit-runs.md", "of a step") == [*shown, "result"]


def test_a_browser_is_told_of_every_end() -> None:
    [page] = re.findall(r"^```html$.*?^```$", (DOCS / "stream-events.md").read_text(), re.M | re.S)
    assert set(re.findall(r"run\.[a-z]+", page)) == TERMINAL_TYPES


def test_metrics_are_those_that_there_are() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    measured = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name: metric.type
        for metric in registry.collect()
    }
    shown = {named(row[0])[0]: row[1] for row in table("observe.md", "metric")}
    assert shown == measured


def test_keys_are_those_that_there_are() -> None:
    shown = set(column("architecture.md", "key"))
    plain = {name for name in vars(keys) if name.isupper() and isinstance(vars(keys)[name], str)}
    written = {vars(keys)[name] for name in plain}
    for function in vars(keys).values():
        if inspect.isfunction(function):
            written |= set(_written_by(function))
    assert shown == written | {"arq:job:<job>"}


def _written_by(function: object) -> Iterator[str]:
    """The key with a word for each argument, with and without the optional one."""
    assert callable(function)
    words = {"run_id": "id", "root_id": "id", "worker_id": "id", "claim_id": "claim"}
    words |= {"digest": "sha256"}
    parameters = inspect.signature(function).parameters.values()
    given = {p.name: f"<{words.get(p.name, p.name)}>" for p in parameters}
    yield function(**given)
    yield function(**{p.name: given[p.name] for p in parameters if p.default is p.empty})


def test_the_context_is_the_context() -> None:
    said = {re.split(r"[.(]", name)[1] for name in column("workflows.md", "call")}
    assert said == {name for name in vars(RunContext) if not name.startswith("_")}


def test_the_stand_in_can_be_told_what_the_docs_say() -> None:
    kinds = get_args(get_args(Behaviour)[0])
    told = {get_args(kind.model_fields["type"].annotation)[0] for kind in kinds}
    assert set(column("models.md", "type")) == told


def marked() -> dict[str, set[tuple[str, str]]]:
    """The tests by the promise whose marker they carry, by themselves or with their whole file."""
    found: dict[str, set[tuple[str, str]]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(file.read_text())
        shared = [node for node in tree.body if isinstance(node, ast.Assign)]
        for test in tree.body:
            if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
                for promise in _promises_in([*test.decorator_list, *shared]):
                    place = (file.relative_to(ROOT).as_posix(), test.name)
                    found.setdefault(promise, set()).add(place)
    return found


def _promises_in(nodes: Sequence[ast.AST]) -> Iterator[str]:
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="guarantee"), args=[ast.Constant(value=str(name))]
            ):
                yield name
            case _:
                pass


def test_promises_and_their_tests_agree() -> None:
    text = (DOCS / "guarantees.md").read_text()
    promised = {found[1]: set(SHOWN_BY.findall(found[0])) for found in PROMISE.finditer(text)}
    carried = marked()
    assert set(promised) == set(carried)
    for promise, shown_by in promised.items():
        assert shown_by, promise
        assert shown_by <= carried[promise], promise


async def test_the_demo_finds_an_answer_on_at_least_three_pages() -> None:
    corpus = Corpus(DOCS)
    try:
        found = await corpus.search(" ".join(telling(DEFAULT_TOPIC)), 5)
        pages = [await corpus.read(hit.url) for hit in found]
    finally:
        corpus.close()
    read = tuple(ReadPage(url=page.address, title=page.title, text=page.text) for page in pages[:4])
    text = report(DEFAULT_TOPIC, Evidence(pages=read), sentences)
    cited = set(re.findall(r"^\[\d+\] .*\((corpus://\S+)\)$", text, re.MULTILINE))
    assert len(cited) >= 3
    assert "corpus://durability.md" in cited
