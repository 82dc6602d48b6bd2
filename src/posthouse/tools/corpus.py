"""A folder of documents: searched by words, read by `corpus://` addresses."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import structlog

from posthouse.clock import monotonic
from posthouse.errors import ToolFailed
from posthouse.tools.answer import clean, cut
from posthouse.tools.folder import Found, load, scan
from posthouse.tools.fulltext import Index
from posthouse.tools.model import Page, SearchHit

T = TypeVar("T")

SCHEME = "corpus://"
log = structlog.get_logger()


class Corpus:
    """Finds and reads the .md, .txt and .html documents under a folder.

    The folder is looked at again at most every `check_seconds`, and indexed anew when it changed.
    """

    def __init__(self, folder: Path, *, check_seconds: float = 2.0) -> None:
        self._folder = folder
        self._check_seconds = check_seconds
        # One thread does everything with the index, so that calls take turns, cancelled ones too.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="corpus")
        self._files: tuple[Found, ...] = ()
        self._index: Index | None = None
        self._look_at = 0.0

    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        """At most `limit` documents, best first. Raises ToolFailed when there is no folder."""

        def find() -> tuple[SearchHit, ...]:
            matches = self._current().search(query, limit)
            return tuple(
                SearchHit(title=match.title, url=address_of(match.path), snippet=match.passage)
                for match in matches
            )

        return await self._in_thread(find)

    async def read(self, address: str) -> Page:
        """The document's whole text. Raises ToolFailed: not_found for what is not in the folder."""
        path = path_of(address)

        def look_up() -> Page:
            # Only what the scan found is in the index, so no path leads out of the folder.
            document = self._current().document(path)
            if document is None:
                raise ToolFailed(
                    f"there is no document {cut(address, 200)}; search_web gives the addresses",
                    kind="not_found",
                )
            return Page(address=address_of(path), title=document.title, text=document.text)

        return await self._in_thread(look_up)

    def close(self) -> None:
        """Ends its thread and gives the index back; waits for the call in hand."""
        self._thread.submit(self._drop).result()
        self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _current(self) -> Index:
        if self._index is not None and monotonic() < self._look_at:
            return self._index
        try:
            root = self._folder.resolve(strict=True)
        except (OSError, RuntimeError):
            root = None
        if root is None or not root.is_dir():
            log.warning("corpus_missing", folder=str(self._folder))
            raise ToolFailed("the folder of documents to search does not exist", kind="unavailable")
        return self._indexed(root, scan(root))

    def _indexed(self, root: Path, files: tuple[Found, ...]) -> Index:
        index = self._index
        if index is None or files != self._files:
            documents = (load(root, file) for file in files)
            index = Index(document for document in documents if document is not None)
            self._drop()
            self._index, self._files = index, files
            log.info("corpus_indexed", folder=str(self._folder), documents=len(files))
        self._look_at = monotonic() + self._check_seconds
        return index

    def _drop(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None


def address_of(path: str) -> str:
    """The address of the document at a path of the folder."""
    return SCHEME + quote(path)


def path_of(address: str) -> str:
    """The path that an address names; "" when it is no address of the corpus."""
    plain = clean(address).strip().partition("#")[0]
    rest = plain[len(SCHEME) :] if plain[: len(SCHEME)].lower() == SCHEME else ""
    return unquote(rest)
