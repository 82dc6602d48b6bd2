import pytest

from posthouse.errors import ToolFailed
from posthouse.tools.model import Page
from posthouse.tools.pages import Pages


class Reader:
    def __init__(self, title: str) -> None:
        self._title = title

    async def read(self, address: str) -> Page:
        return Page(address=address, title=self._title, text="")


@pytest.fixture
def pages() -> Pages:
    return Pages(Reader("corpus"), Reader("web"))


@pytest.mark.parametrize(
    ("address", "reader"),
    [
        ("corpus://a", "corpus"),
        ("http://a", "web"),
        (" HTTPS://a", "web"),
        ("Corpus://a", "corpus"),
    ],
)
async def test_the_scheme_says_who_reads(address: str, reader: str, pages: Pages) -> None:
    assert (await pages.read(address)).title == reader


@pytest.mark.parametrize(
    "address",
    [
        "",
        "example.org",
        "file:///etc/passwd",
        "ftp://a",
        "javascript:1",
        "data:,x",
        "//a",
        "http:a",
    ],
)
async def test_other_schemes_are_forbidden(address: str, pages: Pages) -> None:
    with pytest.raises(ToolFailed) as raised:
        await pages.read(address)
    assert raised.value.kind == "forbidden_address"
