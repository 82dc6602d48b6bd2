import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.errors import ToolFailed
from posthouse.tools.corpus import Corpus, address_of, path_of
from posthouse.tools.model import Page, PageReader, SearchProvider


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "streaming.md").write_text("# Streaming\n\nEvents are pushed.")
    (folder / "deep" / "größe 100%.md").write_text("# Größe\n\nOf sizes.")
    (tmp_path / "secret.md").write_text("# Secret\n\nNobody reads this.")
    (folder / "link.md").symlink_to(tmp_path / "secret.md")
    return folder


@pytest.fixture
def corpus(folder: Path) -> Iterator[Corpus]:
    corpus = Corpus(folder, check_seconds=0)
    yield corpus
    corpus.close()


async def test_what_is_found_can_be_read(corpus: Corpus) -> None:
    provider: SearchProvider = corpus
    reader: PageReader = corpus
    for words, title in (("pushed events", "Streaming"), ("sizes", "Größe")):
        (hit,) = await provider.search(words, 5)
        page = await reader.read(hit.url)
        assert hit.title == page.title == title
        assert page.address == hit.url


async def test_addresses_are_read_in_the_forms_that_models_write(corpus: Corpus) -> None:
    whole = Page(
        address="corpus://streaming.md", title="Streaming", text="# Streaming\n\nEvents are pushed."
    )
    for address in (
        "corpus://streaming.md",
        " CORPUS://streaming.md#part ",
        "corpus://stream%69ng.md",
    ):
        assert await corpus.read(address) == whole
    assert (await corpus.read("corpus://deep/größe 100%25.md")).title == "Größe"


@pytest.mark.parametrize(
    "path",
    ["", "/", ".", "..", "nothing.md", "../secret.md", "%2e%2e/secret.md", "..%2fsecret.md",
     "link.md", "deep/../../secret.md", "%2e%2e%2fsecret.md", "..\\secret.md", "/etc/passwd",
     "//etc/passwd", "deep", "streaming.md/", "./streaming.md", "streaming.md%00", "a\0b", "\ud800",
     "?", "deep/../streaming.md", "%", "%zz", "~", "x" * 100_000],
)  # fmt: skip
async def test_nothing_but_its_documents_is_read(path: str, corpus: Corpus) -> None:
    with pytest.raises(ToolFailed) as raised:
        await corpus.read(f"corpus://{path}")
    assert raised.value.kind == "not_found"
    assert len(str(raised.value)) < 400


async def test_absolute_paths_and_other_schemes_are_not_found(corpus: Corpus, folder: Path) -> None:
    for address in (f"corpus://{folder}/streaming.md", "streaming.md", "file://streaming.md", ""):
        with pytest.raises(ToolFailed, match="no document"):
            await corpus.read(address)


async def test_a_changed_folder_is_indexed_anew(corpus: Corpus, folder: Path) -> None:
    assert await corpus.search("zebra", 5) == ()
    (folder / "new.md").write_text("# Zebra")
    assert [hit.url for hit in await corpus.search("zebra", 5)] == ["corpus://new.md"]
    (folder / "new.md").write_text("# Donkey")
    assert await corpus.search("zebra", 5) == ()
    (folder / "new.md").unlink()
    assert await corpus.search("donkey", 5) == ()


async def test_the_folder_is_not_looked_at_all_the_time(folder: Path) -> None:
    corpus = Corpus(folder, check_seconds=3600)
    assert await corpus.search("zebra", 5) == ()
    (folder / "new.md").write_text("# Zebra")
    assert await corpus.search("zebra", 5) == ()
    corpus.close()


async def test_a_missing_folder_is_a_clear_failure_until_it_is_there(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "later", check_seconds=0)
    for asked in (corpus.search("a", 1), corpus.read("corpus://a.md")):
        with pytest.raises(ToolFailed, match="does not exist") as raised:
            await asked
        assert raised.value.kind == "unavailable"
        assert str(tmp_path) not in str(raised.value)
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "a.md").write_text("# Zebra")
    assert len(await corpus.search("zebra", 1)) == 1
    corpus.close()


async def test_calls_at_once_and_cancelled_ones_do_no_harm(corpus: Corpus, folder: Path) -> None:
    calls = [asyncio.ensure_future(corpus.search("pushed", 3)) for _ in range(50)]
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    os.utime(folder / "streaming.md", (1, 1))
    assert all(len(answer) == 1 for answer in answers[1::2] if isinstance(answer, tuple))
    assert len(await corpus.search("pushed", 3)) == 1


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_path_comes_back_from_its_address(path: str) -> None:
    assert path_of(address_of(path)) == path
    assert address_of(path) == "corpus://" + quote(path)
