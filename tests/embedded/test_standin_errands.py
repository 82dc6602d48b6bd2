"""Tools that the stand-in does not know: each is called once, and what it said is quoted."""

import json

from posthouse.agents.outside import marked
from posthouse.embedded.standin.decide import Ask, Calls, Text, decide
from posthouse.embedded.standin.writer import DISCLAIMER
from posthouse.llm.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolMessage,
    ToolOffer,
    UserMessage,
)


def offer(name: str, **properties: object) -> ToolOffer:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ToolOffer(name=name, description="", parameters=schema)


WEIGH = offer("weigh", what={"type": "string"}, scale={"enum": ["grams", "ounces"]})
RING = offer("ring")
SEARCH = offer("search_web", query={"type": "string"})
START = (SystemMessage(text="You are a clerk."), UserMessage(text="What does this letter cost?"))


def after(messages: tuple[Message, ...], calls: Calls, *results: str) -> tuple[Message, ...]:
    told = (
        ToolMessage(call_id=c.id, text=text) for c, text in zip(calls.calls, results, strict=True)
    )
    return (*messages, AssistantMessage(tool_calls=calls.calls), *told)


def test_each_is_called_once_and_quoted() -> None:
    calls = decide(Ask(START, (WEIGH, RING)))
    assert isinstance(calls, Calls)
    assert [(c.name, json.loads(c.arguments)) for c in calls.calls] == [
        ("weigh", {"what": "What does this letter cost?", "scale": "grams"}),
        ("ring", {}),
    ]
    failure = '{"error": "timeout"}'
    done = after(START, calls, marked("20\n grams"), failure)
    text = decide(Ask(done, (WEIGH, RING)))
    assert isinstance(text, Text)
    assert "- `weigh` said: 20 grams\n" in text.text
    assert f"- `ring` said: {failure}\n" in text.text
    assert DISCLAIMER in text.text
    assert decide(Ask(done)) == text


def test_one_after_the_other_when_they_may_not_be_together() -> None:
    first = decide(Ask(START, (WEIGH, RING), parallel=False))
    assert isinstance(first, Calls)
    second = decide(Ask(after(START, first, "20"), (WEIGH, RING), parallel=False))
    assert isinstance(second, Calls)
    assert [c.name for c in (*first.calls, *second.calls)] == ["weigh", "ring"]


def test_where_it_can_search_it_searches() -> None:
    calls = decide(Ask(START, (WEIGH, SEARCH)))
    assert isinstance(calls, Calls)
    assert [c.name for c in calls.calls] == ["search_web"]


def test_a_new_task_asks_again() -> None:
    calls = decide(Ask(START, (RING,)))
    assert isinstance(calls, Calls)
    done = after(START, calls, "rung")
    again = (*done, AssistantMessage(text="Done."), UserMessage(text="Topic: another letter"))
    assert isinstance(decide(Ask(again, (RING,))), Calls)
