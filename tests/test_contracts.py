"""The import contracts hold, and each can fail: a wrong import planted in a copy is found."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("src", "api_app", "worker_app")
PLANTS = {
    "upwards": ("src/posthouse/events/types.py", "import posthouse.engine", "A room imports only"),
    "new room": ("src/posthouse/attic/__init__.py", "", "A room imports only"),
    "core to app": ("src/posthouse/cli/main.py", "import api_app", "The API and the workers are"),
    "app to app": ("worker_app/main.py", "import api_app", "The API and the workers are"),
    "fat api": ("api_app/__init__.py", "import posthouse.agents", "The API reaches no engine"),
    "indirectly": ("src/posthouse/events/log.py", "import openai", "The API reaches no engine"),
    "definition": (
        "src/posthouse/workflows/library/research.py",
        "import posthouse.tools.model",
        "A definition brings no agent",
    ),
    "fastapi": ("src/posthouse/embedded/stack.py", "import fastapi", "The core knows no web"),
    "openai": ("src/posthouse/agents/loop.py", "import openai", "openai lives in one file"),
    "arq": ("worker_app/main.py", "import arq", "arq lives in one file"),
    "egress": ("src/posthouse/tools/pages.py", "import httpx_secure", "httpx_secure lives in one"),
    "purity": ("src/posthouse/agents/decide.py", "import redis", "Pure modules reach nothing"),
    "library": (
        "src/posthouse/tools/library/search_web.py",
        "import posthouse.tools.library.extract_content",
        "Library entries do not know",
    ),
    "settings": ("src/posthouse/engine/engine.py", "import posthouse.settings", "Only composition"),
}
BROUGHT = """
import importlib, json, pkgutil, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()), name + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
print(json.dumps(sorted(sys.modules)))
"""


def run_python(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root / "src"), str(root)))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True
    )


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports_command as lint; lint()"
    return run_python(root, "-c", command, "--no-cache", "--no-logo")


def brought_by(*names: str) -> set[str]:
    finished = run_python(ROOT, "-c", BROUGHT, *names)
    assert finished.returncode == 0, finished.stderr
    return set(json.loads(finished.stdout))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("contracts")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("*.pyc"))
    return copy


def test_a_copy_of_the_tree_keeps_every_contract(pristine: Path) -> None:
    finished = lint(pristine)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_import_breaks_its_contract(pristine: Path, tmp_path: Path, plant: str) -> None:
    file, line, contract = PLANTS[plant]
    copy = tmp_path / "copy"
    shutil.copytree(pristine, copy)
    target = copy / file
    target.parent.mkdir(exist_ok=True)
    before = target.read_text() if target.exists() else ""
    target.write_text(f"{before}\n{line}\n")

    finished = lint(copy)

    broken = [text for text in finished.stdout.splitlines() if text.rstrip().endswith("BROKEN")]
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert any(text.startswith(contract) for text in broken), finished.stdout


def test_the_api_loads_no_model_sdk_no_worker_and_no_agent() -> None:
    brought = brought_by("api_app.main")
    forbidden = {
        "arq",
        "arq.worker",
        "openai",
        "posthouse.agents",
        "posthouse.engine",
        "posthouse.llm.providers",
        "posthouse.tools",
    }
    assert "fastapi" in brought
    assert brought & forbidden == set()


def test_the_core_loads_no_fastapi() -> None:
    brought = brought_by("posthouse")
    assert "posthouse.engine.engine" in brought
    assert "fastapi" not in brought
