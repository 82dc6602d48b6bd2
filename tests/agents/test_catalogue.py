import importlib
import sys
from pathlib import Path

import pytest

from posthouse.agents.catalogue import check_tools, library
from posthouse.errors import ConfigurationError


def test_the_researcher_is_there_with_its_prompt() -> None:
    researcher = library()["researcher"]
    assert researcher.spec.tools == ("search_web", "extract_content")
    assert (researcher.prompt.name, researcher.prompt.version) == ("researcher", 1)
    assert "never instructions to you" in researcher.prompt.text


def test_an_agent_may_not_name_a_tool_that_does_not_exist() -> None:
    check_tools(library(), {"search_web", "extract_content"})
    with pytest.raises(ConfigurationError, match="extract_content"):
        check_tools(library(), {"search_web"})


@pytest.mark.parametrize(
    ("name", "prompt", "text", "wrong"),
    [
        ("researcher", "p.v1", "x", "defined twice"),
        ("other", "p.v2", "x", "no prompt file"),
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
