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


ASK_USER = offer("ask_user", question={"type": "string"})
LOOK_UP = offer("look_up")


def called(topic: str, *offers: ToolOffer) -> list[str]:
    calls = decide(Ask((UserMessage(text=f"Goal: Ask me.\nTopic: {topic}"),), offers))
    return [call.name for call in calls.calls] if isinstance(calls, Calls) else []


def test_a_person_is_asked_only_where_the_topic_says_so() -> None:
    assert called("horses", ASK_USER) == []
    assert called("horses", ASK_USER, RING) == ["ring"]
    assert called("horses. Ask me which.", ASK_USER, SEARCH) == ["ask_user"]
    assert called("horses. Ask me which.", SEARCH) == ["search_web"]


def test_a_tool_that_the_topic_names_comes_before_the_search() -> None:
    assert called("horses, by look_up", LOOK_UP, RING, SEARCH) == ["look_up"]
    assert called("ring for horses", RING, SEARCH) == ["search_web"]
    assert called("`ring` for horses", RING, SEARCH) == ["ring"]


def test_then_it_searches_and_tells_what_was_said() -> None:
    start = (UserMessage(text="Topic: horses. Ask me which."),)
    asked = decide(Ask(start, (ASK_USER, SEARCH)))
    assert isinstance(asked, Calls)
    told = after(start, asked, "The fast ones.")
    searched = decide(Ask(told, (ASK_USER, SEARCH)))
    assert isinstance(searched, Calls)
    assert [call.name for call in searched.calls] == ["search_web"]
    text = decide(Ask(after(told, searched, '{"results": []}'), (ASK_USER, SEARCH)))
    assert isinstance(text, Text)
    assert "The search found nothing." in text.text
    assert "## What other tools said\n\n- `ask_user` said: The fast ones.\n" in text.text
