"""A group of tools, and what can be made of it: fewer of them, under other names, in less time."""

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from posthouse.errors import ConfigurationError
from posthouse.registry import checked_name
from posthouse.tools.answer import failed
from posthouse.tools.model import Tool, ToolAnswer, ToolContext


@dataclass(frozen=True)
class Toolset:
    """Some tools, in their order. Raises ConfigurationError when two have one name."""

    tools: tuple[Tool, ...]

    def __post_init__(self) -> None:
        names = self.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigurationError(f"tool {twice[0]!r} is twice in a toolset")

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.tools)

    @property
    def names(self) -> tuple[str, ...]:
        """What the tools are called."""
        return tuple(tool.name for tool in self.tools)

    def filtered(self, *names: str) -> "Toolset":
        """Only the tools so called. Raises ConfigurationError when one is not there."""
        if missing := [name for name in names if name not in self.names]:
            known = ", ".join(self.names) or "none"
            raise ConfigurationError(f"there is no tool {missing[0]!r} in a toolset of: {known}")
        return Toolset(tuple(tool for tool in self.tools if tool.name in names))

    def prefixed(self, prefix: str) -> "Toolset":
        """The same tools with the prefix before each name."""
        return Toolset(tuple(_renamed(tool, prefix + tool.name) for tool in self.tools))

    def timed(self, seconds: float) -> "Toolset":
        """The same tools, where no call takes longer than this, all its tries included."""
        if not (math.isfinite(seconds) and seconds > 0):
            raise ConfigurationError(f"a toolset's time must be above 0 seconds, not {seconds}")
        return Toolset(tuple(_timed(tool, seconds) for tool in self.tools))


def _renamed(tool: Tool, name: str) -> Tool:
    offer = tool.offer.model_copy(update={"name": checked_name("tool", name)})
    return replace(tool, offer=offer)


def _timed(tool: Tool, seconds: float) -> Tool:
    async def call(context: ToolContext, text: str) -> ToolAnswer:
        limits = asyncio.timeout(seconds)
        try:
            async with limits:
                return await tool.call(context, text)
        except TimeoutError:
            return failed("timeout", f"the tool timed out after {seconds:g} s", retryable=True)

    return replace(tool, call=call, timeout_seconds=min(seconds, tool.timeout_seconds))
