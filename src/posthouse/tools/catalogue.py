"""The tools that there are: ours and those of other packages."""

from collections.abc import Iterable, Iterator
from types import ModuleType

from posthouse.registry import by_name, definitions
from posthouse.tools import library as built_in
from posthouse.tools.model import Tool
from posthouse.tools.toolset import Toolset


def library(packages: Iterable[ModuleType] = ()) -> dict[str, Tool]:
    """Every tool by name; of a module that defines a Toolset, those in it and no others.

    Raises ConfigurationError: a name twice, a module without a tool, a tool that no model can be offered.
    """
    return by_name("tool", _found((built_in, *packages)))


def _found(packages: Iterable[ModuleType]) -> Iterator[tuple[str, str, Tool]]:
    for module, entries in definitions(packages, Tool, Toolset):
        tools = [entry for entry in entries if isinstance(entry, Tool)]
        toolsets = [entry for entry in entries if isinstance(entry, Toolset)]
        for tool in (tool for some in toolsets for tool in some) if toolsets else tools:
            yield module, tool.name, tool
