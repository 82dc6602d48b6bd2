"""Tools that the stand-in does not know: it calls each of them once and quotes what they said."""

import re
from dataclasses import dataclass

from posthouse.embedded.standin.evidence import EXTRACT, SEARCH, since_task
from posthouse.embedded.standin.sample import Json, sample
from posthouse.embedded.standin.writer import DISCLAIMER
from posthouse.llm.messages import AssistantMessage, Message, ToolMessage, ToolOffer
from posthouse.llm.outside import unmarked

ASK_USER = "ask_user"

_QUOTED = 1000
_WORDS = 200
_ASK = re.compile(r"\bask (?:me|the (?:user|person))\b", re.IGNORECASE)


@dataclass(frozen=True)
class Errand:
    """A call of such a tool, and what it said."""

    tool: str
    said: str | None = None


def errands_of(messages: tuple[Message, ...]) -> tuple[Errand, ...]:
    """Every such call since the task was given."""
    since = since_task(messages)
    said = {m.call_id: unmarked(m.text) for m in since if isinstance(m, ToolMessage)}
    calls = [c for m in since if isinstance(m, AssistantMessage) for c in m.tool_calls]
    return tuple(Errand(c.name, said.get(c.id)) for c in calls if c.name not in (SEARCH, EXTRACT))


def unasked(
    offers: tuple[ToolOffer, ...], messages: tuple[Message, ...], topic: str
) -> list[tuple[str, Json]]:
    """The tools to call now with arguments that fit: with something to search in, only those that the topic names.

    A person is asked only where the topic says so ("ask me").
    """
    searches = any(offer.name in (SEARCH, EXTRACT) for offer in offers)
    asked = {errand.tool for errand in errands_of(messages)}
    words = " ".join(topic.split())[:_WORDS] or "stand-in"
    return [
        (offer.name, sample(offer.parameters, words))
        for offer in offers
        if offer.name not in (*asked, SEARCH, EXTRACT)
        and (_wants(topic, offer.name) or not (searches or offer.name == ASK_USER))
    ]


def _wants(topic: str, tool: str) -> bool:
    """Whether the topic names the tool, or asks for a question to a person."""
    if tool == ASK_USER and _ASK.search(topic):
        return True
    named = re.search(rf"(?<![\w-]){re.escape(tool)}(?![\w-])", topic) is not None
    # A tool may be called like any word of a topic: `weigh` then needs its backticks.
    return f"`{tool}`" in topic or (named and "_" in tool)


def quotes(errands: tuple[Errand, ...]) -> str:
    """What the tools said, a list in Markdown."""
    return "\n".join(
        f"- `{errand.tool}` said: {' '.join(errand.said.split())[:_QUOTED]}"
        for errand in errands
        if errand.said is not None
    )


def quoted(topic: str, errands: tuple[Errand, ...]) -> str:
    """What the tools said, as the whole answer."""
    return f"{' '.join(topic.split())[:_WORDS]}\n\n{quotes(errands)}\n\n{DISCLAIMER}\n"
