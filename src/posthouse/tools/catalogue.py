"""The tools that come with posthouse, by name."""

from posthouse.registry import discover
from posthouse.tools import library as built_in
from posthouse.tools.model import Tool


def library() -> dict[str, Tool]:
    """Every tool of the library by its name. Raises ConfigurationError when two have one name."""
    return discover([built_in], Tool, key=lambda tool: tool.name)
