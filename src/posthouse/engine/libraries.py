"""Everything that the libraries of a worker hold: workflows, agents and tools, which fit each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posthouse.agents import catalogue as agents
from posthouse.agents.spec import Agent
from posthouse.registry import parts_of
from posthouse.tools import catalogue as tools
from posthouse.tools.model import Tool
from posthouse.workflows import catalogue as workflows
from posthouse.workflows.definition import Workflow


@dataclass(frozen=True)
class Stock:
    """What there is to run, by name: the built-ins and what the libraries add."""

    workflows: dict[str, Workflow[Any, Any]]
    agents: dict[str, Agent]
    tools: dict[str, Tool]


def stock_of(libraries: Sequence[str]) -> Stock:
    """Imports all of the libraries. Raises ConfigurationError with one line that names the module."""
    toolbox = tools.library(parts_of(libraries, "tools"))
    crew = agents.library(parts_of(libraries, "agents"))
    agents.check_tools(crew, toolbox)
    return Stock(workflows.library(parts_of(libraries, "workflows")), crew, toolbox)
