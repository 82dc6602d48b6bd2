"""Tools that the stand-in does not know: it calls each of them once and quotes what they said."""

from dataclasses import dataclass

from posthouse.agents.outside import unmarked
from posthouse.embedded.standin.evidence import EXTRACT, SEARCH, since_task
from posthouse.embedded.standin.sample import Json, sample
from posthouse.embedded.standin.writer import DISCLAIMER
from posthouse.llm.messages import AssistantMessage, Message, ToolMessage, ToolOffer

_QUOTED = 1000
_WORDS = 200


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
    """The tools to call now with arguments that fit; none when there is something to search in."""
    if any(offer.name in (SEARCH, EXTRACT) for offer in offers):
        return []
    asked = {errand.tool for errand in errands_of(messages)}
    words = " ".join(topic.split())[:_WORDS] or "stand-in"
    return [
        (offer.name, sample(offer.parameters, words)) for offer in offers if offer.name not in asked
    ]


def quoted(topic: str, errands: tuple[Errand, ...]) -> str:
    """What the tools said, in Markdown."""
    answers = (
        f"- `{errand.tool}` said: {' '.join(errand.said.split())[:_QUOTED]}"
        for errand in errands
        if errand.said is not None
    )
    return f"{' '.join(topic.split())[:_WORDS]}\n\n" + "\n".join(answers) + f"\n\n{DISCLAIMER}\n"
