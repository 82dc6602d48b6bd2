"""A worker process with libraries of a user: what is wrong in them is one line, and exit code 2."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.starts import Starter, run_python

ROOT = Path(__file__).parents[2]

TOOL = '''
from posthouse.tools.define import tool
from posthouse.tools.model import Effect

@tool{terms}
async def {name}({signature}) -> str:
    """Weighs a letter.

    Args:
        letter: Which one.
    """
    return letter
'''


def tool(signature: str = "letter: str", terms: str = "", name: str = "weigh") -> str:
    return TOOL.format(signature=signature, terms=terms, name=name)


def agent(name: str, prompt: str = "clerk.v1", tools: str = "('weigh',)") -> str:
    return (
        "from posthouse.agents.spec import AgentSpec\n"
        f"a = AgentSpec(name={name!r}, description='d', prompt={prompt!r}, tools={tools})\n"
    )


WORKFLOW = '''
from pydantic import BaseModel
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow

class Letter(BaseModel): ...

@workflow("research")
async def mine(ctx: RunContext, letter: Letter) -> Letter:
    """Gives the letter back."""
    return letter
'''


def given(folder: Path, files: Mapping[str, str], libraries: str = "mine") -> dict[str, str]:
    """The environment of a worker that is started in the folder, which gets the files."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "OPENAI_API_KEY": "x",
        "POSTHOUSE_LIBRARIES": libraries,
    }


HERE = "mine.tools.weigh: tool 'weigh': "


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"mine/tools/weigh.py": tool("letter")}, HERE + "annotate 'letter' with its type"),
        (
            {"mine/tools/weigh.py": tool("letter: str, scale: str")},
            HERE + "say in its docstring what 'scale' is",
        ),
        (
            {"mine/tools/weigh.py": tool("")},
            HERE + "its docstring describes 'letter', which is no argument of it",
        ),
        (
            {"mine/tools/weigh.py": tool(terms="(effect=Effect.WRITE, retries=2)")},
            HERE + "a call that writes is never made again by itself; take retries out",
        ),
        (
            {"mine/tools/weigh.py": tool(), "mine/tools/weight.py": tool()},
            "tool 'weigh' is defined twice: in mine.tools.weigh and in mine.tools.weight",
        ),
        (
            {"mine/tools/find.py": tool(name="search_web")},
            "tool 'search_web' is defined twice: "
            "in posthouse.tools.library.search_web and in mine.tools.find",
        ),
        ({"mine/tools/weigh.py": "x = 1\n"}, "mine.tools.weigh defines no Tool and no Toolset"),
        (
            {"mine/tools/weigh.py": "\nimport no_such_scales\n"},
            "mine.tools.weigh cannot be imported: ModuleNotFoundError: "
            "No module named 'no_such_scales' (weigh.py, line 2)",
        ),
        ({"mine/tools.py": tool()}, "mine.tools is a module; it must be a package, "),
        (
            {"mine/agents/clerk.py": agent("clerk"), "mine/agents/prompts/clerk.v1.md": "You are."},
            "agent 'clerk' names tools that do not exist: weigh",
        ),
        (
            {"mine/agents/clerk.py": agent("clerk", tools="()")},
            "agent 'clerk' has no prompt file clerk.v1.md",
        ),
        (
            {"mine/agents/clerk.py": agent("researcher", tools="()")},
            "agent 'researcher' is defined twice: "
            "in posthouse.agents.library.researcher and in mine.agents.clerk",
        ),
        (
            {"mine/workflows/mine.py": WORKFLOW},
            "workflow 'research' is defined twice: "
            "in posthouse.workflows.library.research and in mine.workflows.mine",
        ),
        ({"yours/tools/weigh.py": tool()}, "library 'mine': there is no package 'mine'"),
    ],
)
def test_what_is_wrong_in_a_library_is_one_line_and_exit_code_2(
    tmp_path: Path, starter: Starter, files: dict[str, str], said: str
) -> None:
    done = starter.run("worker_app", env=given(tmp_path, files), cwd=tmp_path)
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"posthouse: {said}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_one_name_in_two_libraries_is_refused(tmp_path: Path) -> None:
    files = {"mine/tools/weigh.py": tool(), "yours/tools/weigh.py": tool()}
    done = run_python("-m", "worker_app", env=given(tmp_path, files, "mine,yours"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "posthouse: tool 'weigh' is defined twice: in mine.tools.weigh and in yours.tools.weigh\n"
    )
