import pytest

from posthouse.errors import ConfigurationError
from posthouse.tools.define import tool
from posthouse.tools.model import ToolContext, Toolset
from posthouse.tools.toolset import FunctionToolset


@tool()
async def first(word: str) -> str:
    """The first."""
    return f"1 {word}"


@tool()
async def second(word: str) -> str:
    """The second."""
    return f"2 {word}"


async def test_tools_are_offered_in_order_and_called_by_name(context: ToolContext) -> None:
    toolset: Toolset = FunctionToolset([second, first])
    assert [offer.name for offer in toolset.offers()] == ["second", "first"]
    assert (await toolset.call("first", '{"word": "go"}', context)).text == "1 go"


@pytest.mark.parametrize("name", ["third", "", "x" * 100_000, "\ud800", '"\n'])
async def test_an_unknown_name_is_told_with_the_known_ones(name: str, context: ToolContext) -> None:
    answer = await FunctionToolset([first, second]).call(name, "{}", context)
    assert answer.problem is not None
    assert answer.problem.error == "unknown_tool"
    assert answer.problem.message.endswith("first, second")
    assert len(answer.text) < 300


async def test_an_empty_toolset_says_so(context: ToolContext) -> None:
    answer = await FunctionToolset([]).call("first", "{}", context)
    assert answer.problem is not None
    assert answer.problem.message.endswith("there is: none")


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'first' is given twice"):
        FunctionToolset([first, first])
