import json
from typing import Any

import pytest

from posthouse.tools.library.extract_content import TEXT_BYTES, extract_content
from posthouse.tools.model import Page, Source, ToolContext


async def test_it_gives_the_text_and_names_its_source(shelf: Any, context: ToolContext) -> None:
    shelf.pages["https://a.example/"] = Page(
        address="https://a.example/final", title="A", text="Of horses."
    )
    answer = await extract_content.call(context, '{"url": "https://a.example/"}')
    assert json.loads(answer.text) == {
        "url": "https://a.example/final", "title": "A", "text": "Of horses."
    }  # fmt: skip
    assert answer.sources == (Source(address="https://a.example/final", title="A"),)


@pytest.mark.parametrize("character", ["a", '"', "\n", "é", "\0", "😀"])
async def test_a_long_text_is_cut_and_stays_json(
    character: str, shelf: Any, context: ToolContext
) -> None:
    shelf.pages["corpus://a.md"] = Page(
        address="corpus://a.md", title=character * 5000, text=character * 500_000
    )
    answer = await extract_content.call(context, '{"url": "corpus://a.md"}')
    assert len(answer.text.encode()) <= TEXT_BYTES + 1024
    assert json.loads(answer.text)["text"].endswith("… [cut]")
    assert len(answer.text.encode()) > TEXT_BYTES * 0.9
