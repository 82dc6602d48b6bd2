"""Names that are stored and sent are plain, no two entries share one, and libraries are found."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from posthouse.agents.spec import AgentSpec
from posthouse.errors import ConfigurationError
from posthouse.registry import checked_name, discover, named_libraries, parts_of


@pytest.mark.parametrize("name", ["", "a b", 'a"', "a\n", "ä", "x" * 65, "a:b"])
def test_a_name_that_would_need_escaping_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="a name is"):
        checked_name("workflow", name)
    with pytest.raises(ConfigurationError):
        AgentSpec(name=name, description="", prompt="x.v1")


@pytest.fixture
def importable(tmp_path: Path) -> Iterator[Path]:
    """A folder that is on the path; what was imported from it is forgotten after the test."""
    known = set(sys.modules)
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))
    for name in set(sys.modules) - known:
        del sys.modules[name]


def written(folder: Path, files: Mapping[str, str]) -> None:
    """Python files; each folder on the way is a package."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for parent in file.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
        file.write_text(text)


def package(folder: Path, name: str, **files: str) -> ModuleType:
    written(folder, {f"{name}/{stem}.py": text for stem, text in files.items()})
    return __import__(name)


def test_what_a_library_defines_is_found_once(importable: Path) -> None:
    numbers = package(importable, "some_numbers", one="a = 1j\n", two="b = 2j\n")
    assert discover([numbers], complex, str) == {"1j": 1j, "2j": 2j}
    with pytest.raises(ConfigurationError, match="defines no bytearray"):
        discover([numbers], bytearray, str)


def test_what_is_private_or_imported_is_no_definition(importable: Path) -> None:
    numbers = package(
        importable,
        "shy_numbers",
        _shared="raise AssertionError('it is not looked at by itself')\n",
        one="a = 1j\n_b = 2j\n",
        two="from shy_numbers.one import a\nc = 3j\n",
    )
    assert discover([numbers], complex, str) == {"1j": 1j, "3j": 3j}


def test_one_name_twice_is_refused_with_both_places(importable: Path) -> None:
    twice = package(importable, "twice_numbers", one="a = 1j\n", two="a = 3j\n")
    said = "complex 'same' is defined twice: in twice_numbers.one and in twice_numbers.two"
    with pytest.raises(ConfigurationError, match=f"^{said}$"):
        discover([twice], complex, lambda number: "same")


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("", ()),
        (" , ", ()),
        ("one", ("one",)),
        (" two, one.part ,two", ("two", "one.part")),
    ],
)
def test_libraries_are_listed_by_name(listed: str, names: tuple[str, ...]) -> None:
    assert named_libraries(listed) == names


@pytest.mark.parametrize(
    "listed", ["one two", "a-b", "one/two", "one:two", ".one", "one.", "1", "é"]
)
def test_what_can_be_no_package_is_refused(listed: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^POSTHOUSE_LIBRARIES: '{listed}' names no pack"):
        named_libraries(listed)


def test_installed_distributions_name_theirs(importable: Path) -> None:
    info = importable / "stable-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stable\nVersion: 1\n")
    points = info / "entry_points.txt"
    points.write_text("[posthouse.libraries]\nstable = stable_tools\nb = another\n")
    assert named_libraries("mine, another") == ("mine", "another", "stable_tools")
    points.write_text("[posthouse.libraries]\nstable = stable_tools:thing\n")
    said = "^entry point 'stable' of posthouse.libraries: 'stable_tools:thing' names no package$"
    with pytest.raises(ConfigurationError, match=said):
        named_libraries("")


def test_only_the_part_that_is_wanted_is_imported(importable: Path) -> None:
    bad = "raise AssertionError('imported')\n"
    files = {"lib/workflows/one.py": "", "lib/tools/__init__.py": bad, "other/agents/one.py": bad}
    written(importable, files)
    assert [part.__name__ for part in parts_of(("lib", "other"), "workflows")] == ["lib.workflows"]
    assert not any(name.startswith(("lib.tools", "other.agents")) for name in sys.modules)


WHERE = "; Python looks in PYTHONPATH, in the current folder and among what is installed"
LIBRARIES = {
    "lib/tools/one.py": "",
    "plain.py": "",
    "bare/one.py": "",
    "flat/tools.py": "",
    "broken/__init__.py": "\n1 / 0\n",
    "wordless/tools/__init__.py": "assert 0\n",
    "needy/tools/__init__.py": "\n\nimport no\n",
    "garbled/tools/__init__.py": "1 +\n",
    "wrong/tools/__init__.py": (
        "from posthouse.errors import ConfigurationError\nraise ConfigurationError('name a tool')\n"
    ),
}


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ("nowhere", f"library 'nowhere': there is no package 'nowhere'{WHERE}"),
        ("nowhere.else", f"library 'nowhere.else': there is no package 'nowhere'{WHERE}"),
        ("lib.nowhere", "library 'lib.nowhere': there is no package 'lib.nowhere'"),
        ("plain", "library 'plain': 'plain' is a module, not a package"),
        ("plain.more", "library 'plain.more': 'plain' is a module, not a package"),
        ("bare", "library 'bare': it has none of the sub-packages workflows, agents, tools"),
        ("flat", "flat.tools is a module; it must be a package, a definition a file"),
        ("broken", "broken cannot be imported: ZeroDivisionError: division by zero (__init__.py, line 2)"),
        ("broken.part", "broken cannot be imported: ZeroDivisionError: division by zero (__init__.py, line 2)"),
        ("wordless", "wordless.tools cannot be imported: AssertionError (__init__.py, line 1)"),
        ("needy", "needy.tools cannot be imported: ModuleNotFoundError: No module named 'no' (__init__.py, line 3)"),
        ("garbled", "garbled.tools cannot be imported: SyntaxError: invalid syntax (__init__.py, line 1)"),
        ("wrong", "wrong.tools: name a tool"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_one_line(
    importable: Path, library: str, said: str
) -> None:
    written(importable, LIBRARIES)
    with pytest.raises(ConfigurationError) as refused:
        parts_of([library], "tools")
    assert str(refused.value) == said
