"""The rules of the house that no other tool checks: lengths, places, forbidden words."""

import ast
import importlib
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from posthouse.agents import library as agents
from posthouse.agents.spec import AgentSpec
from posthouse.settings import Settings
from posthouse.tools import library as tools
from posthouse.tools.model import Tool
from posthouse.workflows import library as workflows
from posthouse.workflows.definition import Workflow

ROOT = Path(__file__).parents[1]
CODE = sorted(
    file for top in ("src", "api_app", "worker_app") for file in (ROOT / top).rglob("*.py")
)
REQUIREMENTS = ("runtime", "dev", "build")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
OUTSIDE = {".git", ".venv", ".venv-lock", "__pycache__", "build", "dist", "node_modules"}
# Written apart, so that this file does not say them.
FORBIDDEN = {
    "the name of a package host": (
        r"py" + r"pi\.(org|python)|python" + r"hosted|npm" + r"js\.(org|com)|yarn" + r"pkg"
        r"|crates" + r"\.io|rubygems" + r"\.org|proxy\.golang" + r"\.org|deb\.debian" + r"\.org"
        r"|archive\.ubuntu" + r"\.com|anaconda" + r"\.org"
    ),
    "a path of one machine": (
        r"(?<![\w.])/(wo"
        + r"rk|ro"
        + r"ot|ho"
        + r"me/\w+|Use"
        + r"rs/\w+)/|/opt/(py"
        + r"pi|wheels)"
        r"|[A-Z]:\\Use" + r"rs"
    ),
    "a thing left to do": r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
}


def short(file: Path) -> str:
    return str(file.relative_to(ROOT))


def tracked() -> Iterator[tuple[str, str]]:
    """Every text file that is, or may come, under version control: its name and its text."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        files = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:  # an export without its history
        files = [file for file in ROOT.rglob("*") if not OUTSIDE & set(file.parts)]
    for file in files:
        if file.is_file() and b"\0" not in (content := file.read_bytes()):
            yield short(file), content.decode()


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement, *hashes = line.split(" --hash=")
        assert hashes, f"{name}: {requirement} has no hash"
        assert all(value.strip().startswith("sha256:") for value in hashes)
        found[requirement.strip()] = line
    return found


def test_files_are_short() -> None:
    lengths = {short(file): len(file.read_text().splitlines()) for file in CODE}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{short(file)}:{node.lineno} {node.name}"
        for file in CODE
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_module_says_in_one_line_what_it_is_for() -> None:
    mute = []
    for file in CODE:
        lines = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()
        if not lines or not lines[0].strip() or (len(lines) > 1 and lines[1].strip()):
            mute.append(short(file))
    assert mute == []


@pytest.mark.parametrize(
    ("library", "kind"), [(tools, Tool), (agents, AgentSpec), (workflows, Workflow)]
)
def test_a_library_file_holds_one_entry_of_its_own_name(library: ModuleType, kind: type) -> None:
    names = [found.name for found in pkgutil.iter_modules(library.__path__)]
    assert names
    for name in names:
        module = importlib.import_module(f"{library.__name__}.{name}")
        entries = [value for value in vars(module).values() if isinstance(value, kind)]
        assert [getattr(entry, "name", None) for entry in entries] == [name]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_text_holds(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in tracked()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_env_example_explains_every_setting_with_its_default_and_nothing_else() -> None:
    shown: dict[str, str] = {}
    previous = ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if match := re.fullmatch(r"#([A-Z][A-Z0-9_]*)=(.*)", line):
            assert re.match(r"# \S", previous), f"{match[1]} is not explained"
            shown[match[1]] = match[2]
        else:
            assert re.fullmatch(r"(# \S.*)?", line), f"neither words nor a setting: {line!r}"
        previous = line
    fields = Settings.model_fields.values()
    defaults = {
        str(field.validation_alias): "" if field.default is None else str(field.default)
        for field in fields
    }
    assert shown == defaults


def test_env_example_uncommented_is_the_defaults(tmp_path: Path) -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    copy = tmp_path / ".env"
    copy.write_text(
        "\n".join(line.removeprefix("#") for line in lines if re.match(r"#\w+=.", line))
    )
    assert Settings(_env_file=copy) == Settings(_env_file=None)


def test_every_page_of_the_docs_is_linked() -> None:
    entries = [ROOT / "README.md", ROOT / "docs" / "index.md"]
    text = "".join(entry.read_text() for entry in entries if entry.exists())
    lost = [
        page.name
        for page in sorted((ROOT / "docs").glob("*.md"))
        if page.name != "index.md"
        and not re.search(rf"\]\((\./|docs/)?{re.escape(page.name)}[#)]", text)
    ]
    assert lost == []


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_are_pinned_with_hashes_and_name_no_place(name: str) -> None:
    for requirement, line in pins(name).items():
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", requirement), requirement
        assert not re.search(r"://|\s@\s|--(index|extra|find|trusted)", line), requirement


@pytest.mark.parametrize("name", ["runtime", "build"])
def test_what_is_tested_is_what_runs(name: str) -> None:
    assert pins(name).keys() - pins("dev").keys() == set()
