"""Reads a document wherever it is: the corpus or the web, by the scheme of its address."""

from posthouse.errors import ToolFailed
from posthouse.tools.answer import cut
from posthouse.tools.model import Page, PageReader


class Pages:
    """One reader for `corpus://` and for `http(s)://` addresses."""

    def __init__(self, corpus: PageReader, web: PageReader) -> None:
        self._corpus = corpus
        self._web = web

    async def read(self, address: str) -> Page:
        """The document's text. Raises ToolFailed: forbidden_address for any other scheme."""
        scheme, separator, _ = address.strip().partition("://")
        match scheme.lower() if separator else "":
            case "corpus":
                return await self._corpus.read(address)
            case "http" | "https":
                return await self._web.read(address)
            case _:
                raise ToolFailed(
                    f"{cut(address, 200)!r} cannot be read: give a whole address that begins with"
                    " corpus://, https:// or http://",
                    kind="forbidden_address",
                )
