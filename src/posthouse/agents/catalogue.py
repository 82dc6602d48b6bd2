"""The agents that there are: ours and those of other packages, with their prompts."""

from collections.abc import Collection, Iterable, Mapping
from importlib.resources import files
from types import ModuleType

from posthouse.agents import library as built_in
from posthouse.agents.spec import Agent, AgentSpec, with_prompt
from posthouse.errors import ConfigurationError
from posthouse.registry import discover


def library(packages: Iterable[ModuleType] = ()) -> dict[str, Agent]:
    """Every agent by name; a package keeps its prompt files in its folder `prompts`.

    Raises ConfigurationError: a name twice, a module without an agent, a prompt that is missing.
    """
    agents: dict[str, Agent] = {}
    for package in (built_in, *packages):
        folder = files(package) / "prompts"
        for name, spec in discover([package], AgentSpec, lambda spec: spec.name).items():
            if name in agents:
                raise ConfigurationError(f"agent {name!r} is defined twice")
            agents[name] = with_prompt(spec, folder)
    return agents


def check_tools(agents: Mapping[str, Agent], tools: Collection[str]) -> None:
    """Raises ConfigurationError when an agent may use a tool that there is not."""
    for agent in agents.values():
        if missing := [name for name in agent.spec.tools if name not in tools]:
            raise ConfigurationError(
                f"agent {agent.spec.name!r} names tools that do not exist: {', '.join(missing)}"
            )
