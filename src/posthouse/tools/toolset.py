"""A toolset made of tools: offers them, and calls them by name."""

from collections.abc import Iterable

from posthouse.errors import ConfigurationError
from posthouse.llm.messages import ToolOffer
from posthouse.tools.answer import cut, failed
from posthouse.tools.model import Tool, ToolAnswer, ToolContext


class FunctionToolset:
    """The given tools, in the given order. Raises ConfigurationError when two have one name."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ConfigurationError(f"tool {tool.name!r} is given twice")
            self._tools[tool.name] = tool

    def offers(self) -> tuple[ToolOffer, ...]:
        """The tools as the model sees them."""
        return tuple(tool.offer for tool in self._tools.values())

    async def call(self, name: str, arguments: str, context: ToolContext) -> ToolAnswer:
        """The answer of the named tool; an unknown name is an answer that lists the known ones."""
        tool = self._tools.get(name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            return failed("unknown_tool", f"there is no tool {cut(name, 80)!r}; there is: {known}")
        return await tool.call(context, arguments)
