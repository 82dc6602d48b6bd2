"""The tool `search_web`: finds documents."""

from typing import Annotated

from pydantic import Field

from posthouse.tools.answer import cut_for_json
from posthouse.tools.define import tool
from posthouse.tools.model import Effect, SearchHit, ToolContext

TITLE_BYTES = 400
SNIPPET_BYTES = 1500


@tool(effect=Effect.READ, timeout_seconds=20.0)
async def search_web(
    context: ToolContext, query: str, max_results: Annotated[int, Field(ge=1, le=10)] = 5
) -> dict[str, list[dict[str, str]]]:
    """Search for documents on a subject; gives title, address and a passage of each, best first.

    Args:
        query: What to look for, in a few words.
        max_results: How many documents to give at most, from 1 to 10.
    """
    hits = await context.resources.search.search(query, max_results)
    return {"results": [_shown(hit) for hit in hits[:max_results]]}


def _shown(hit: SearchHit) -> dict[str, str]:
    return {
        "title": cut_for_json(hit.title, TITLE_BYTES),
        "url": hit.url,
        "snippet": cut_for_json(hit.snippet, SNIPPET_BYTES),
    }
