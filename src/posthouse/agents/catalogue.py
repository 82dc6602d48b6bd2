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
    agents = {name: _prompted(spec, folders[name]) for name, spec in specs.items()}
    _check_prompts(agents)
    return agents


def _check_prompts(agents: Mapping[str, Agent]) -> None:
    """A run pins its prompts by name, so that one name must be one text."""
    owners: dict[str, Agent] = {}
    for agent in agents.values():
        other = owners.setdefault(agent.prompt.name, agent)
        if other.prompt != agent.prompt:
            raise ConfigurationError(
                f"agents {other.spec.name!r} and {agent.spec.name!r} have different prompts"
                f" named {agent.prompt.name!r}"
            )


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
                f"agent {agent.spec.name!r} names tools that do not exist: {', '.join(missing)}; "
                f"there are: {', '.join(sorted(tools))}"
            )
