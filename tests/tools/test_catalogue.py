from posthouse.tools.catalogue import library
from posthouse.tools.library.extract_content import extract_content
from posthouse.tools.library.search_web import search_web


def test_the_library_holds_the_built_in_tools() -> None:
    assert library() == {"extract_content": extract_content, "search_web": search_web}
