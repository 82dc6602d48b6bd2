"""The agents that there are: ours and those of other packages, with their prompts."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import ModuleType

from posthouse.agents import library as built_in
from posthouse.agents.spec import Agent, AgentSpec, with_prompt
from posthouse.errors import ConfigurationError
from posthouse.registry import by_name, definitions


def library(packages: Iterable[ModuleType] = ()) -> dict[str, Agent]:
    """Every agent by name; a package keeps its prompt files in its folder `prompts`.

    Raises ConfigurationError: a name twice, a module without an agent, a prompt that is missing.
    """
    folders: dict[str, Traversable] = {}

    def found() -> Iterator[tuple[str, str, AgentSpec]]:
        for package in (built_in, *packages):
            for module, specs in definitions([package], AgentSpec):
                for spec in specs:
                    folders.setdefault(spec.name, files(package) / "prompts")
                    yield module, spec.name, spec

    specs = by_name("agent", found())
    return {name: _prompted(spec, folders[name]) for name, spec in specs.items()}


def _prompted(spec: AgentSpec, folder: Traversable) -> Agent:
    try:
        return with_prompt(spec, folder)
    except UnicodeDecodeError:
        raise ConfigurationError(f"prompt file {spec.prompt}.md is not in UTF-8") from None


def check_tools(agents: Mapping[str, Agent], tools: Collection[str]) -> None:
    """Raises ConfigurationError when an agent may use a tool that there is not."""
    for agent in agents.values():
        if missing := [name for name in agent.spec.tools if name not in tools]:
            raise ConfigurationError(
                f"agent {agent.spec.name!r} names tools that do not exist: {', '.join(missing)}"
            )
