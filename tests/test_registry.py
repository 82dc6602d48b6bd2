"""Names that are stored and sent are plain, and no two entries share one."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from posthouse.agents.spec import AgentSpec
from posthouse.errors import ConfigurationError
from posthouse.registry import checked_name, discover


@pytest.mark.parametrize("name", ["", "a b", 'a"', "a\n", "ä", "x" * 65, "a:b"])
def test_a_name_that_would_need_escaping_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="a name is"):
        checked_name("workflow", name)
    with pytest.raises(ConfigurationError):
        AgentSpec(name=name, description="", prompt="x.v1")


def package(folder: Path, name: str, **files: str) -> ModuleType:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    for stem, text in files.items():
        (folder / name / f"{stem}.py").write_text(text)
    return __import__(name)


@pytest.fixture
def importable(tmp_path: Path):
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))


def test_what_a_library_defines_is_found_once(importable: Path) -> None:
    numbers = package(importable, "some_numbers", one="a = 1j\n", two="b = 2j\n")
    assert discover([numbers], complex, str) == {"1j": 1j, "2j": 2j}
    twice = package(importable, "twice_numbers", one="a = 1j\n", two="a = 3j\n")
    with pytest.raises(ConfigurationError, match="defined twice"):
        discover([twice], complex, lambda number: "same")
    with pytest.raises(ConfigurationError, match="defines no"):
        discover([numbers], bytearray, str)
