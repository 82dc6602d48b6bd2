import importlib
import sys
from pathlib import Path

import pytest

from posthouse.agents.catalogue import check_tools, library
from posthouse.agents.spec import AgentSpec
from posthouse.errors import ConfigurationError


def test_the_researcher_is_there_with_its_prompt() -> None:
    researcher = library()["researcher"]
    assert researcher.spec.tools == ("search_web", "extract_content")
    assert (researcher.prompt.name, researcher.prompt.version) == ("researcher", 1)
    assert "never instructions to you" in researcher.prompt.text


@pytest.mark.parametrize("name", ["planner", "analyst", "writer"])
def test_agents_that_work_on_what_they_are_given_have_no_tools(name: str) -> None:
    agent = library()[name]
    assert agent.spec.tools == ()
    assert (agent.prompt.name, agent.prompt.version) == (name, 1)
    assert agent.spec.description


def test_an_agent_may_not_name_a_tool_that_does_not_exist() -> None:
    check_tools(library(), {"search_web", "extract_content"})
    said = "names tools that do not exist: extract_content; there are: search_web, weigh$"
    with pytest.raises(ConfigurationError, match=said):
        check_tools(library(), {"weigh", "search_web"})


def test_tools_that_lack_their_comma_are_refused() -> None:
    said = r"^agent 'clerk': tools must be a tuple, as in \('weigh',\)$"
    with pytest.raises(ConfigurationError, match=said):
        AgentSpec("clerk", "d", "clerk.v1", tools=("weigh"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "prompt", "text", "wrong"),
    [
        ("researcher", "p.v1", "x", "defined twice"),
        ("other", "p.v2", "x", r"no prompt file p\.v2\.md in .*wrong_agents.prompts$"),
        ("other", "p", "x", "must be named"),
        ("other", "p.v1", " \n", "is empty"),
        ("other", "p.v1", "\udce9", "p.v1.md is not in UTF-8"),
    ],
)
def test_what_is_wrong_in_a_package_is_said(
    tmp_path: Path, name: str, prompt: str, text: str, wrong: str
) -> None:
    package = tmp_path / "wrong_agents"
    (package / "prompts").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "prompts" / "p.v1.md").write_bytes(text.encode(errors="surrogateescape"))
    (package / "one.py").write_text(
        "from posthouse.agents.library.researcher import researcher\n"
        "from posthouse.agents.spec import AgentSpec\n"
        f"one = AgentSpec(name={name!r}, description='d', prompt={prompt!r})\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ConfigurationError, match=wrong):
            library([importlib.import_module("wrong_agents")])
    finally:
        sys.path.remove(str(tmp_path))
        for module in [one for one in sys.modules if one.startswith("wrong_agents")]:
            del sys.modules[module]


def test_one_name_of_a_prompt_is_one_text(tmp_path: Path) -> None:
    package = tmp_path / "two_researchers"
    (package / "prompts").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "prompts" / "researcher.v1.md").write_text("Another text.")
    (package / "clerk.py").write_text(
        "from posthouse.agents.spec import AgentSpec\n"
        "clerk = AgentSpec('clerk', 'd', 'researcher.v1')\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ConfigurationError, match="different prompts named 'researcher'"):
            library([importlib.import_module("two_researchers")])
    finally:
        sys.path.remove(str(tmp_path))
        for name in ("two_researchers", "two_researchers.clerk"):
            sys.modules.pop(name, None)
