"""A megabyte of whatever a model may write, through everything that reads it: quickly, and without a crash."""

import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from api_app.stream import NativeFrames
from posthouse import logs
from posthouse.agents.conversation import Answered, Conversation
from posthouse.agents.decide import TurnState, decide
from posthouse.agents.deltas import DeltaBatcher
from posthouse.agents.form import form_of
from posthouse.agents.outside import mark_of, marked, unmarked
from posthouse.agents.stall import fingerprint, past_call
from posthouse.errors import InvalidOutput, ToolFailed
from posthouse.events.log import Logged
from posthouse.events.types import Draft, MessageCompleted, MessageDelta, ToolStarted, head
from posthouse.journal.model import AgentAnswer, Outcome, SourceRead
from posthouse.journal.store import outcome_json
from posthouse.llm import classify
from posthouse.llm.answer import MOST_CHARACTERS, ErrorInStream, PartialAnswer, storable
from posthouse.llm.estimate import tokens_of
from posthouse.llm.frames import EventReader, EventTooLong
from posthouse.llm.messages import AssistantMessage, Completion, ModelRequest, ToolCall
from posthouse.llm.providers.openai import body_of
from posthouse.tools.answer import answered, cut_for_json, failed
from posthouse.tools.arguments import MAX_ARGUMENT_CHARACTERS, ArgumentsRefused, arguments_of
from posthouse.tools.corpus import path_of
from posthouse.tools.fulltext import match_query
from posthouse.tools.guard import check_url
from posthouse.tools.model import Source, ToolAnswer
from posthouse.workflows.citations import cited_addresses, with_sources
from posthouse.workflows.library.research import ResearchRequest, report_of

SIZE = 1024 * 1024
# In the short form each parser gets all texts, but only some of them whole, and of those each parser others.
SHARE = 8
LIMIT_SECONDS = {SIZE: 0.1, SIZE // SHARE: 0.05}
TRIES = 3
NETWORK_BYTES = 65_536

UNITS = {
    "words": "word ",
    "brackets": "[",
    "braces": "{",
    "objects": '{"a":',
    "arrays of objects": '[{"a":[',
    "closing": "]}",
    "quotes": '"',
    "escaped quotes": '\\"',
    "nested quotes": "\"'",
    "backslashes": "\\",
    "escapes": "\\u0000",
    "surrogate escapes": "\\ud800",
    "high surrogates": "\ud800",
    "low surrogates": "\udc00",
    "surrogate pairs": "\ud83d\ude00",
    "nul": "\x00",
    "controls": "\x1b[31m",
    "crlf": "\r\n",
    "separators": "\u2028\u2029\x85",
    "spaces": " ",
    "tabs": "\t",
    "wide spaces": "\u3000\xa0",
    "nines": "9",
    "unicode digits": "\u0663\uff19",
    "exponents": "1e999,",
    "minus": "-",
    "dots": "a.",
    "dashes": "a-",
    "letters": "a",
    "underscores": "a_",
    "citations": "[1](",
    "links": "](",
    "parentheses": "(",
    "pairs of parentheses": "()",
    "schemes": "a://",
    "addresses": "https://a.b/c ",
    "addresses in one": "https://a.b/c(",
    "addresses with parentheses": "a://b(c)",
    "addresses without a host": "http:// ",
    "commas": "a://b,",
    "headings": "# ",
    "numbered headings": "\n# 1",
    "bold": "**",
    "sources": "\n## Sources",
    "fences": "```json\n{",
    "emphasis": "*_~`",
    "html": "<a href='",
    "entities": "&#x",
    "marks": "<<data deadbeef>>\n",
    "ends of marks": "\n<<end deadbeef>>",
    "both marks": "<<data deadbeef>>\nx\n<<end deadbeef>>",
    "right to left": "\u202e\u200f\u05d0",
    "combining": "\u0301\u0338",
    "joiners": "\U0001f468\u200d",
    "big": "\U0001f600",
    "long s": "\u017f\u212a",
    "keys": "sk-12345678",
    "key beginnings": "sk-",
    "bearers": "Bearer ",
    "passwords": "a://b:c@",
    "at": "@",
    "events": "data: {}\n\n",
    "fields": "data:\n",
    "line ends": "\n",
    "stop words": "the of ",
    "percents": "%",
    "escaped": "%2e%2e/",
}
FRAMES = {
    "json": ('{"text": "', '"}'),
    "numbers": ('{"numbers": [', "]}"),
    "marked": ("<<data deadbeef>>\n", "\n<<end deadbeef>>"),
    "heading": ("# 1. ", " sources"),
    "bearer": ("Bearer ", " 1"),
    "address": ("a://", "@"),
}
FRAMED = ("brackets", "quotes", "high surrogates", "spaces", "nines", "dots", "letters", "at")


Make = Callable[[int], str]


def flood(unit: str, start: str = "", end: str = "") -> Make:
    """As often as it fits into so many bytes."""
    width = len(unit.encode("utf-8", "surrogatepass"))
    return lambda size: start + unit * (size // width) + end


def numbers(item: str, share: int) -> Make:
    """A list of so many bytes, or of a share of them."""

    def make(size: int) -> str:
        most = max(1, size // (len(item) + 1))
        inside = ",".join([item] * most)
        inside = inside if share == 1 else inside[: size // share].rpartition(",")[0]
        return '{"numbers": [' + inside + "]}"

    return make


def fields(share: int) -> Make:
    """An object of so many bytes, or of a share of them."""

    def make(size: int) -> str:
        inside = ",".join(f'"a{number}": 1' for number in range(size // 13))
        return "{" + (inside if share == 1 else inside[: size // share].rpartition(",")[0]) + "}"

    return make


def corpus() -> Iterator[tuple[str, Make]]:
    yield "nothing", lambda size: ""
    for name, unit in UNITS.items():
        yield name, flood(unit)
        if name in FRAMED:
            for frame, (start, end) in FRAMES.items():
                yield f"{name} {frame}", flood(unit, start, end)
    for item in ('"a"', "{}", "[]", "null", "1e9"):
        yield f"many {item}", numbers(item, 1)
        yield f"few {item}", numbers(item, 8)
    yield "fields", fields(1)
    yield "half the fields", fields(8)
    yield "deep but whole", lambda size: '{"more": {"a": ' + "[" * 400 + "]" * 400 + "}}"
    yield "as deep as can be", lambda size: "[" * (size // 2) + "]" * (size // 2)
    yield "one long number", flood("9", '{"count": ', "}")
    yield "different addresses", lambda size: " ".join(f"a://b{n}" for n in range(size // 11))
    yield "text as a string", lambda size: json.dumps({"text": "\ud800\x00\u202e" * (size // 18)})


CORPUS = dict(corpus())


class Plan(BaseModel):
    text: str
    numbers: list[int] = []
    kind: Literal["a", "b"] = "a"
    more: dict[str, Any] = {}


async def _look(
    text: str = "",
    numbers: tuple[int, ...] = (),
    more: dict[str, Any] | None = None,
    count: int = 0,
) -> None:
    """Looks."""


_ABOUT = {"text": "t", "numbers": "n", "more": "m", "count": "c"}
_, ARGUMENTS = arguments_of("look", _look, _ABOUT)
FORM = form_of(Plan)
SOURCE = SourceRead("corpus://a.md", "A", "s/1")
TOPIC = ResearchRequest(topic="posts")


def chunk(**delta: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"delta": delta, "finish_reason": "stop"}]}


def function(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"index": 0, "id": call_id, "function": {"name": name, "arguments": arguments}}


def taken(chunks: Iterable[dict[str, Any]]) -> Completion:
    answer = PartialAnswer(lambda _: None)
    for one in chunks:
        answer.add(one)
        if answer.too_long:
            break
    return answer.completion("m", 1)


def pieces(text: str, length: int = 100) -> Iterator[str]:
    return (text[at : at + length] for at in range(0, max(1, len(text)), length))


def said(text: str, *calls: ToolCall) -> Completion:
    return Completion(model="m", text=text, tool_calls=calls, finish_reason="stop", latency_ms=1)


def called(text: str) -> ToolCall:
    return ToolCall(id="a", name=text, arguments=text)


def told(text: str) -> ToolAnswer:
    return answered(ToolAnswer(text=text, sources=(Source(address="a://b", title="t"),)), 32 * 1024)


# Those in RECEIVED take a text as JSON brings it, those in STORED what the provider made storable of it.


def tool_arguments(text: str) -> None:
    with suppress(ArgumentsRefused):
        ARGUMENTS.parse(text)


def tool_arguments_up_to_the_limit(text: str) -> None:
    with suppress(ArgumentsRefused):
        ARGUMENTS.parse(text[:MAX_ARGUMENT_CHARACTERS])


def provider_text(text: str) -> None:
    taken([chunk(content=text)])


def provider_text_up_to_the_limit(text: str) -> None:
    completion = taken([chunk(content=text[:MOST_CHARACTERS])])
    assert completion.finish_reason == "stop"
    completion.model_dump_json()


def provider_pieces(text: str) -> None:
    taken(chunk(content=piece) for piece in pieces(text))


def provider_call(text: str) -> None:
    taken([chunk(tool_calls=[function(text, text, text)])])


def provider_call_up_to_the_limit(text: str) -> None:
    part = text[: MOST_CHARACTERS // 3]
    completion = taken([chunk(tool_calls=[function(part, part, part)])])
    assert completion.finish_reason == "stop"
    completion.model_dump_json()


def provider_call_in_pieces(text: str) -> None:
    taken(chunk(tool_calls=[function("a", "", piece)]) for piece in pieces(text))


def provider_words(text: str) -> None:
    reason = text or "stop"
    taken([{"model": text, "choices": [{"delta": {"refusal": text}, "finish_reason": reason}]}])


def provider_error(text: str) -> None:
    with pytest.raises(ErrorInStream) as caught:
        taken([{"error": {"code": text or "x", "type": text}}])
    classify.stream_failure(caught.value.code, caught.value.kind)


def wire(text: str) -> None:
    """As one event."""
    read(b"data: " + json.dumps(chunk(content=text)).encode() + b"\n\n")


def wire_raw(text: str) -> None:
    """As if a server wrote it instead of events: as much as the network brings at once, and more."""
    read(text[: SIZE // 4].encode("utf-8", "replace"))


def read(raw: bytes) -> None:
    reader, answer = EventReader(), PartialAnswer(lambda _: None)
    # What the provider takes for a connection that went bad.
    with suppress(EventTooLong, ValueError, AttributeError, RecursionError):
        for at in range(0, len(raw), NETWORK_BYTES):
            for event in reader.feed(raw[at : at + NETWORK_BYTES]):
                answer.add(json.loads(event.decode()))


def surrogates(text: str) -> None:
    storable(text).encode()


def request_body(text: str) -> None:
    said_so = AssistantMessage(text=text, tool_calls=(called(text),))
    sent = body_of(ModelRequest(model="m", messages=(said_so,)))
    arguments = sent["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert arguments == text or isinstance(json.loads(arguments), dict)


def estimate(text: str) -> None:
    tokens_of(ModelRequest(model="m", messages=()), said(text, called(text)))


def decision(text: str) -> None:
    decide(said(text), TurnState(1, 5))
    decide(said(text, called(text)), TurnState(1, 5, blocked=frozenset({"x"})))


def decision_on_a_form(text: str) -> None:
    decide(said(text), TurnState(1, 5), FORM)


def stall(text: str) -> None:
    fingerprint(called(text))


def stall_results(text: str) -> None:
    past_call(called("{}"), text, None, (text[:2000],), reads=False)


def output_model(text: str) -> None:
    with suppress(InvalidOutput):
        AgentAnswer(text, (), 1).read(Plan)


def citations(text: str) -> None:
    with_sources(text, (SOURCE,))


def addresses(text: str) -> None:
    cited_addresses(text)


def research_report(text: str) -> None:
    report_of(TOPIC, AgentAnswer(text, (SOURCE,), 1)).model_dump_json()


def heads(text: str) -> None:
    assert len(head(text).encode()) <= 1024


def deltas(text: str) -> None:
    sent: list[MessageDelta] = []
    batcher = DeltaBatcher(sent.append, lambda: 0.0)
    for piece in pieces(text):
        batcher.add(piece)
    batcher.flush()
    assert len(batcher.text) == sum(len(delta.text) for delta in sent) == len(text)


def one_delta(text: str) -> None:
    batcher = DeltaBatcher(lambda delta: len(delta.data_json()), lambda: 0.0)
    batcher.add(text)
    batcher.flush()


def conversation(text: str) -> None:
    talk = Conversation.begin(text, text, 5, tools=True)
    one = Answered(called(text), told(text), "s")
    talk.after_repair(said(text), text).after_calls(said(text, called(text)), [one])


def marks(text: str) -> None:
    between = marked(text)
    assert between.count(f"<<end {mark_of(text)}>>") == 1
    unmarked(between)
    unmarked(text)


def tool_answers(text: str) -> None:
    told(text)
    with suppress(ValueError):  # JSON has no lone surrogates
        answered({"a": [text]}, 32 * 1024)
    failed(text, text)
    cut_for_json(text, 1500)


def journal(text: str) -> None:
    result = said(text, called(text)).model_dump(mode="json")
    outcome_json(Outcome(seq=1, epoch=1, time=1, result=result))


def event_frames(text: str) -> None:
    events = (
        MessageDelta(offset=0, text=text),
        MessageCompleted(text=head(text), length=len(text)),
        ToolStarted(tool=text[:64], call_id="a", arguments=head(text)),
    )
    items = [
        Logged(1, *draft.fields()[:2], 1, draft.fields()[3].encode())
        for draft in (Draft(event=event) for event in events)
    ]
    frames = framed(items)
    assert frames.count(b"\n\n") == len(items)
    assert b"\r" not in frames


def framed(items: list[Logged]) -> bytes:
    """Without a loop: the coroutine waits for nothing."""
    coroutine = NativeFrames()(items)
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    frames: bytes = done.value.value
    return frames


def redaction(text: str) -> None:
    logs.redact(None, "info", {"event": text, "deep": {"a": [text[:1000]]}})


def search_query(text: str) -> None:
    match_query(text[:MAX_ARGUMENT_CHARACTERS])


def web_address(text: str) -> None:
    path_of(text[:MAX_ARGUMENT_CHARACTERS])
    for url in (text, text[:2000], f"https://{text[:1900]}"):
        with suppress(ToolFailed):
            check_url(url)


RECEIVED: tuple[Callable[[str], None], ...] = (
    provider_text,
    provider_text_up_to_the_limit,
    provider_pieces,
    provider_call,
    provider_call_up_to_the_limit,
    provider_call_in_pieces,
    provider_words,
    provider_error,
    wire,
)
RAW: tuple[Callable[[str], None], ...] = (
    tool_arguments,
    tool_arguments_up_to_the_limit,
    wire_raw,
    surrogates,
    heads,
    marks,
    redaction,
    tool_answers,
    search_query,
    web_address,
)
STORED: tuple[Callable[[str], None], ...] = (
    request_body,
    estimate,
    decision,
    decision_on_a_form,
    stall,
    stall_results,
    output_model,
    citations,
    addresses,
    research_report,
    deltas,
    one_delta,
    conversation,
    journal,
    event_frames,
)


@pytest.fixture(autouse=True, scope="module")
def _a_heap_of_its_own() -> None:
    """What other tests left alive is not looked through whenever these make many objects."""
    gc.collect()
    gc.freeze()


PARSERS = (*RECEIVED, *RAW, *STORED)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
def test_a_megabyte_of_hostile_output(parser: Callable[[str], None], long: bool) -> None:
    slow = {}
    for number, (name, make) in enumerate(CORPUS.items(), PARSERS.index(parser)):
        size = SIZE if long or number % SHARE == 0 else SIZE // SHARE
        given = prepared(parser, make(size))
        limit = LIMIT_SECONDS[size]
        seconds = best_of(lambda given=given: parser(given), limit)
        if seconds > limit:
            slow[name, size] = round(seconds, 3)
    assert slow == {}


def prepared(parser: Callable[[str], None], text: str) -> str:
    if parser in RECEIVED:
        return str(json.loads(json.dumps(text)))
    return storable(text) if parser in STORED else text


def best_of(work: Callable[[], None], enough: float) -> float:
    """CPU seconds of this thread, so that neither other processes nor threads count."""
    best = float("inf")
    for _ in range(TRIES):
        best = min(best, cpu_seconds(work))
        if best <= enough:
            break
    return best


def one_by_one(make: Callable[[str], dict[str, Any]], count: int) -> None:
    answer = PartialAnswer(lambda _: None)
    for _ in range(count):
        answer.add(make("x"))
    assert not answer.too_long
    answer.completion("m", 1)


def deltas_one_by_one(count: int) -> None:
    batcher = DeltaBatcher(lambda _: None, lambda: 0.0)
    for _ in range(count):
        batcher.add("x")
    assert len(batcher.text) == count


def events_byte_by_byte(count: int) -> None:
    reader = EventReader()
    for _ in range(count):
        reader.feed(b"x")


@pytest.mark.parametrize(
    "work",
    [
        partial(one_by_one, lambda piece: chunk(content=piece)),
        partial(one_by_one, lambda piece: chunk(tool_calls=[function("a", "", piece)])),
        partial(one_by_one, lambda piece: chunk(tool_calls=[function("a", piece, "")])),
        partial(one_by_one, lambda piece: chunk(function_call={"arguments": piece})),
        partial(one_by_one, lambda piece: chunk(refusal=piece)),
        deltas_one_by_one,
        events_byte_by_byte,
    ],
    ids=["text", "arguments", "name", "legacy call", "refusal", "deltas", "bytes"],
)
def test_single_characters_cost_the_same_however_many_came_before(
    work: Callable[[int], None], long: bool
) -> None:
    count = 20_000 if long else 5_000
    few = min(cpu_seconds(lambda: work(count)) for _ in range(TRIES))
    many = min(cpu_seconds(lambda: work(8 * count)) for _ in range(TRIES))
    assert many < 3 * 8 * few


def cpu_seconds(work: Callable[[], None]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started
