"""The tool `extract_content`: reads one document."""

import orjson

from posthouse.tools.answer import cut_for_json
from posthouse.tools.define import tool
from posthouse.tools.model import Effect, Source, ToolAnswer, ToolContext

TEXT_BYTES = 24 * 1024
TITLE_BYTES = 400


@tool(effect=Effect.READ, timeout_seconds=20.0)
async def extract_content(context: ToolContext, url: str) -> ToolAnswer:
    """Read the text of one document, at an address from search_web or any public web address.

    Args:
        url: The document's whole address, such as https://example.org/page or corpus://page.md.
    """
    page = await context.resources.pages.read(url)
    title = cut_for_json(page.title, TITLE_BYTES)
    body = {"url": page.address, "title": title, "text": cut_for_json(page.text, TEXT_BYTES)}
    return ToolAnswer(
        text=orjson.dumps(body).decode(), sources=(Source(address=page.address, title=title),)
    )
