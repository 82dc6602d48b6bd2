import json
import re
from urllib.parse import urldefrag

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.embedded.standin.decide import (
    Answer,
    AsJson,
    Ask,
    Calls,
    Named,
    Text,
    decide,
    loop_call,
)
from posthouse.embedded.standin.writer import DISCLAIMER
from posthouse.llm.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolMessage,
    ToolOffer,
    UserMessage,
)


def offer(name: str, argument: str) -> ToolOffer:
    properties = {argument: {"type": "string"}, "max_results": {"type": "integer", "default": 5}}
    schema = {"type": "object", "properties": properties, "required": [argument]}
    return ToolOffer(name=name, description="", parameters=schema)


SEARCH = offer("search_web", "query")
EXTRACT = offer("extract_content", "url")
TOOLS = (SEARCH, EXTRACT)
TASK = "Research the topic below.\n\nTopic: How do leases keep a run safe?\nDepth: standard"
PAGES = {
    "corpus://leases.md": (
        "# Leases\n\nA lease is a claim that ends by itself when its worker stops renewing it.\n\n"
        "```python\nlease = take_the_lease_of_the_run_and_keep_it_safe(run)\n```\n\n"
        "| lease | seconds |\n|---|---|\n| run | 6 |\n\n"
        "The [fencing token](https://example.org/fence) of a lease keeps a **safe** run from "
        "writes by a worker that slept. See also the page on leases.\n"
    ),
    "corpus://runs.md": (
        "# Runs\n\nEvery run keeps a journal, so that no finished step is ever done again. "
        "Some sentence about horses stands here without any use.\n"
    ),
}


def start(text: str = TASK) -> tuple[Message, ...]:
    return (SystemMessage(text="You are a researcher."), UserMessage(text=text))


def after(messages: tuple[Message, ...], answer: Answer, results: list[str]) -> tuple[Message, ...]:
    assert isinstance(answer, Calls)
    told = [
        ToolMessage(call_id=call.id, text=text)
        for call, text in zip(answer.calls, results, strict=True)
    ]
    return (*messages, AssistantMessage(tool_calls=answer.calls), *told)


def arguments(answer: Answer) -> list[tuple[str, dict[str, object]]]:
    assert isinstance(answer, Calls)
    return [(call.name, json.loads(call.arguments)) for call in answer.calls]


def found(*urls: str) -> str:
    return json.dumps({"results": [{"title": f"T {u}", "url": u, "snippet": "s"} for u in urls]})


def page(url: str) -> str:
    return json.dumps({"url": url, "title": url.partition("://")[2], "text": PAGES[url]})


def report_on(task: str = TASK) -> str:
    messages = start(task)
    searched = after(messages, decide(Ask(messages, TOOLS)), [found(*PAGES)])
    read = after(searched, decide(Ask(searched, TOOLS)), [page(url) for url in PAGES])
    answer = decide(Ask(read, TOOLS))
    assert isinstance(answer, Text)
    return answer.text


def test_first_it_searches_with_the_words_of_the_topic() -> None:
    answer = decide(Ask(start(), TOOLS))
    assert arguments(answer) == [("search_web", {"query": "leases keep run safe"})]


def test_a_deep_task_gets_two_searches_at_once() -> None:
    deep = arguments(decide(Ask(start(TASK.replace("standard", "deep")), TOOLS)))
    assert [name for name, _ in deep] == ["search_web", "search_web"]
    assert deep[0] != deep[1]
    assert len(arguments(decide(Ask(start("Topic: deep sea\nDepth: standard"), TOOLS)))) == 1
    assert len(arguments(decide(Ask(start("Topic: x"), TOOLS)))) == 1


def test_without_a_topic_line_the_last_user_message_is_the_topic() -> None:
    answer = decide(Ask((UserMessage(text="What is a fencing token?"),), TOOLS))
    assert arguments(answer) == [("search_web", {"query": "fencing token"})]


def test_then_it_reads_at_most_four_distinct_documents_in_one_turn() -> None:
    messages = start(TASK.replace("standard", "deep"))
    results = [found("c://1", "c://2", "c://2#part", "c://3"), found("c://9", "c://1", "c://8")]
    read = arguments(decide(Ask(after(messages, decide(Ask(messages, TOOLS)), results), TOOLS)))
    assert read == [("extract_content", {"url": f"c://{n}"}) for n in (1, 9, 2, 8)]


def test_documents_that_could_not_be_read_are_not_asked_for_again() -> None:
    messages = start()
    urls = [f"c://{n}" for n in range(6)]
    messages = after(messages, decide(Ask(messages, TOOLS)), [found(*urls)])
    failed = json.dumps({"error": "timeout", "message": "too slow"})
    messages = after(messages, decide(Ask(messages, TOOLS)), [failed] * 4)
    second = decide(Ask(messages, TOOLS))
    assert arguments(second) == [("extract_content", {"url": url}) for url in urls[4:]]
    last = decide(Ask(after(messages, second, [failed] * 2), TOOLS))
    assert isinstance(last, Text)
    assert "Nothing was read. Failed tool calls: 6." in last.text
    assert "## Sources" not in last.text


def test_the_report_cites_every_document_and_lists_exactly_those() -> None:
    text = report_on()
    body, _, sources = text.partition("## Sources")
    assert text.startswith("# How do leases keep a run safe?\n\n" + DISCLAIMER)
    listed = dict(re.findall(r"^\[(\d+)\] .+ \((.+)\)$", sources, re.MULTILINE))
    assert sorted(listed.values()) == sorted(PAGES)
    assert set(re.findall(r"\[(\d+)\]", body)) == set(listed)


def test_the_report_holds_plain_sentences_of_the_documents() -> None:
    text = report_on()
    assert "A lease is a claim that ends by itself when its worker stops renewing it. [" in text
    assert "The fencing token of a lease keeps a safe run from writes by a worker" in text
    for unwanted in ("```", "take_the_lease", "|", "example.org", "See also", "horses"):
        assert unwanted not in text


def test_when_the_search_found_nothing_it_says_so() -> None:
    messages = start()
    answer = decide(Ask(after(messages, decide(Ask(messages, TOOLS)), [found()]), TOOLS))
    assert isinstance(answer, Text)
    assert (
        "Nothing was read. The search found nothing. So this report cites no source." in answer.text
    )


@pytest.mark.parametrize("good", [False, True])
def test_when_every_search_failed_it_says_so(*, good: bool) -> None:
    messages = start(TASK.replace("standard", "deep"))
    failed = json.dumps({"error": "http_error", "message": "status 401"})
    results = [failed, found() if good else failed]
    answer = decide(Ask(after(messages, decide(Ask(messages, TOOLS)), results), TOOLS))
    assert isinstance(answer, Text)
    assert ("The search failed." in answer.text) is not good
    assert ("The search found nothing." in answer.text) is good


@pytest.mark.parametrize(
    "result",
    ["", "no JSON", "[1, 2]", "null", '{"results": 7}', '{"results": [7, {"url": 3}, {}]}'],
)
def test_what_cannot_be_read_is_passed_over(result: str) -> None:
    messages = start()
    answer = decide(Ask(after(messages, decide(Ask(messages, TOOLS)), [result]), TOOLS))
    assert isinstance(answer, Text)


def test_a_result_that_was_cut_off_still_counts() -> None:
    messages = start()
    cut = found("c://1", "c://2")[:-12]
    searched = after(messages, decide(Ask(messages, TOOLS)), [cut])
    reading = decide(Ask(searched, TOOLS))
    assert len(arguments(reading)) == 2
    pages = [page(url)[:-30] + "… [cut]" for url in PAGES]
    answer = decide(Ask(after(searched, reading, pages), TOOLS))
    assert isinstance(answer, Text)
    assert "## Sources" in answer.text


def test_a_remark_between_the_turns_does_not_change_the_task() -> None:
    messages = start()
    searched = after(messages, decide(Ask(messages, TOOLS)), [found(*PAGES)])
    read = after(searched, decide(Ask(searched, TOOLS)), [page(url) for url in PAGES])
    answer = decide(Ask((*read, UserMessage(text="This is your last turn. Answer now.")), TOOLS))
    assert answer == Text(report_on())


def test_tool_choice_is_obeyed() -> None:
    other = offer("notify", "to")
    assert isinstance(decide(Ask(start(), TOOLS, choice="none")), Text)
    assert isinstance(decide(Ask(start(), (other,), choice="none")), Text)
    required = decide(Ask(start(), (other,), choice="required"))
    assert arguments(required) == [("notify", {"to": "stand-in", "max_results": 1})]
    named = decide(Ask(start(), (*TOOLS, other), choice=Named("extract_content")))
    assert [name for name, _ in arguments(named)] == ["extract_content"]


def test_without_parallel_calls_there_is_one_at_a_time() -> None:
    deep = start(TASK.replace("standard", "deep"))
    assert len(arguments(decide(Ask(deep, TOOLS, parallel=False)))) == 1


def test_a_json_answer_is_json() -> None:
    free = decide(Ask(start(), form=AsJson()))
    assert isinstance(free, Text)
    assert json.loads(free.text)["answer"].startswith("# How do leases")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    assert decide(Ask(start(), form=AsJson(schema))) == Text('{"ok":true}')


def test_a_loop_never_asks_the_same_twice() -> None:
    messages, seen = start(), set[str]()
    for _ in range(5):
        call = loop_call(Ask(messages))
        seen.add(call.calls[0].arguments)
        messages = after(messages, call, [found("c://1")])
    assert len(seen) == 5


words = st.sampled_from(
    ["lease", "run", "worker", "Redis", "safe", "the", "of", "journal", "keeps"]
)
prose = st.lists(words, min_size=1, max_size=12).map(lambda w: " ".join(w).capitalize() + ".")
markdown = st.lists(
    prose
    | st.sampled_from(["# Lease", "```", "| a | b |", "- item", "[1]", "> quote", "[x](y)", ""])
    | st.text(max_size=30),
    max_size=8,
).map("\n\n".join)  # fmt: skip
addresses = st.sampled_from([f"https://example.org/{n}" for n in range(7)])
results = (
    st.lists(addresses, max_size=6).map(lambda urls: found(*urls))
    | st.fixed_dictionaries({"url": addresses, "title": prose, "text": markdown}).map(json.dumps)
    | st.just('{"error": "timeout", "message": "too slow"}')
    | st.text(max_size=40)
)  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """A task and some turns of what tools may have answered, sensible or not."""
    topic = draw(prose | st.text(max_size=60))
    messages = start(f"Topic: {topic}\nDepth: {draw(st.sampled_from(['standard', 'deep']))}")
    for _ in range(draw(st.integers(0, 3))):
        answer = decide(Ask(messages, TOOLS))
        if not isinstance(answer, Calls):
            break
        messages = after(messages, answer, [draw(results) for _ in answer.calls])
    return messages


@settings(max_examples=150, deadline=None)
@given(conversations())
def test_the_answer_depends_on_nothing_but_the_conversation(messages: tuple[Message, ...]) -> None:
    assert decide(Ask(messages, TOOLS)) == decide(Ask(messages, TOOLS))


@settings(max_examples=150, deadline=None)
@given(conversations())
def test_ids_are_unique_within_a_conversation(messages: tuple[Message, ...]) -> None:
    answer = decide(Ask(messages, TOOLS))
    calls = [c.id for m in messages if isinstance(m, AssistantMessage) for c in m.tool_calls]
    calls += [call.id for call in answer.calls] if isinstance(answer, Calls) else []
    assert len(set(calls)) == len(calls)
    assert all(re.fullmatch(r"call_[0-9a-f]{12}", call_id) for call_id in calls)


@settings(max_examples=150, deadline=None)
@given(conversations())
def test_every_conversation_ends_with_a_sound_report(messages: tuple[Message, ...]) -> None:
    for _ in range(6):
        answer = decide(Ask(messages, TOOLS))
        if isinstance(answer, Text):
            break
        asked = [json.loads(call.arguments).get("url") for call in answer.calls]
        assert len({urldefrag(url)[0] for url in asked if url}) == len(
            [url for url in asked if url]
        )
        messages = after(messages, answer, ["nothing"] * len(answer.calls))
    assert isinstance(answer, Text)
    body, _, sources = answer.text.partition("\n## Sources\n")
    listed = re.findall(r"^\[(\d+)\] .* \((\S+)\)$", sources, re.MULTILINE)
    assert DISCLAIMER in body
    assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
    assert {number for number, _ in listed} == set(re.findall(r"\[(\d+)\]", body))
    assert len({url for _, url in listed}) == len(listed)
