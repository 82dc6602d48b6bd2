from types import ModuleType

import pytest

from posthouse.errors import ConfigurationError
from posthouse.tools.catalogue import library
from posthouse.tools.library.ask_user import ask_user
from posthouse.tools.library.extract_content import extract_content
from posthouse.tools.library.search_web import search_web

BUILT_IN = {
    "ask_user": ask_user,
    "extract_content": extract_content,
    "search_web": search_web,
}

WEATHER = """
from posthouse.tools.define import tool

@tool
async def forecast() -> str:
    '''Says what comes.'''
    return "rain"

@tool
async def report() -> str:
    '''Says what was.'''
    return "sun"
"""


def test_the_library_holds_the_built_in_tools() -> None:
    assert library() == BUILT_IN


def test_a_module_may_define_tools_or_a_toolset_of_those_of_others(importable) -> None:
    weather: ModuleType = importable("weather", one=WEATHER)
    assert list(library([weather])) == [*BUILT_IN, "forecast", "report"]
    ours: ModuleType = importable(
        "ours",
        again="from posthouse.tools.library.search_web import search_web\n",
        theirs=(
            "from posthouse.tools.toolset import Toolset\n"
            "from weather.one import forecast, report\n"
            "theirs = Toolset((forecast, report)).filtered('forecast').prefixed('swiss_')\n"
        ),
    )
    assert list(library([ours])) == [*BUILT_IN, "swiss_forecast"]
    assert list(library([ours, weather])) == [*BUILT_IN, "swiss_forecast", "forecast", "report"]


def test_a_toolset_that_takes_a_name_that_there_is_is_refused(importable) -> None:
    taken = importable(
        "taken",
        one=(
            "from posthouse.tools.toolset import Toolset\n"
            "from posthouse.tools.library.search_web import search_web\n"
            "hasty = Toolset((search_web,)).timed(1)\n"
        ),
    )
    said = "'search_web' is defined twice: in posthouse.tools.library.search_web and in taken.one"
    with pytest.raises(ConfigurationError, match=said):
        library([taken])
