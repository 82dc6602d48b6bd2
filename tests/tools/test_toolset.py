"""Fewer tools, under other names, in less time."""

import asyncio
import json

import pytest

from posthouse.errors import ConfigurationError
from posthouse.tools.define import tool
from posthouse.tools.model import ToolContext
from posthouse.tools.toolset import Toolset


@tool
async def first(word: str) -> str:
    """The first.

    :param word: What to say.
    """
    return f"1 {word}"


@tool(timeout_seconds=0.01)
async def second() -> str:
    """The second, which takes for ever."""
    await asyncio.Event().wait()
    return "2"


BOTH = Toolset((first, second))


def test_some_of_them_in_their_own_order() -> None:
    assert BOTH.names == ("first", "second")
    assert BOTH.filtered("second", "first") == BOTH
    assert BOTH.filtered("second") == Toolset((second,))
    with pytest.raises(ConfigurationError, match="no tool 'third' in a toolset of: first, second"):
        BOTH.filtered("first", "third")


async def test_a_prefix_changes_what_the_model_sees_and_nothing_else(context: ToolContext) -> None:
    theirs = BOTH.prefixed("their_")
    assert theirs.names == ("their_first", "their_second")
    assert [made.offer.name for made in theirs] == ["their_first", "their_second"]
    assert theirs.tools[0].offer.parameters == first.offer.parameters
    assert (await theirs.tools[0].call(context, '{"word": "go"}')).text == "1 go"
    assert BOTH.names == ("first", "second")
    with pytest.raises(ConfigurationError, match="a name is 1-64"):
        BOTH.prefixed("over there ")


async def test_the_lower_limit_of_time_holds(context: ToolContext) -> None:
    @tool(retries=50)
    async def never() -> str:
        """Never answers."""
        raise TimeoutError

    hasty = Toolset((first, second, never)).timed(0.1)
    assert [made.timeout_seconds for made in hasty] == [0.1, 0.01, 0.1]
    assert (await hasty.tools[0].call(context, '{"word": "go"}')).text == "1 go"
    said = [json.loads((await made.call(context, "{}")).text) for made in hasty.tools[1:]]
    assert [told["error"] for told in said] == ["timeout", "timeout"]
    assert [told["message"][-7:] for told in said] == [" 0.01 s", "r 0.1 s"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="above 0 seconds"):
        BOTH.timed(seconds)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'first' is twice"):
        Toolset((first, second, first))
