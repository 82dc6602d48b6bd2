"""What the stand-in model answers: a pure function of the conversation and what is offered."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import orjson

from posthouse.embedded.standin.digest import asks_for_digest, digest
from posthouse.embedded.standin.errands import errands_of, quoted, quotes, unasked
from posthouse.embedded.standin.evidence import (
    EXTRACT,
    SEARCH,
    Evidence,
    Task,
    evidence_of,
    task_of,
    unread,
)
from posthouse.embedded.standin.planning import PlanFault, PlanForm, faulty_plan, plan, plan_form
from posthouse.embedded.standin.prose import sentences
from posthouse.embedded.standin.sample import Json, sample
from posthouse.embedded.standin.words import telling
from posthouse.embedded.standin.writer import Reader, report
from posthouse.llm.messages import AssistantMessage, Message, ToolCall, ToolMessage, ToolOffer

_PAGES = 4
_KEY_WORDS = 8


@dataclass(frozen=True)
class Named:
    """This one tool must be called."""

    name: str


@dataclass(frozen=True)
class AsText:
    """The final answer is Markdown."""


@dataclass(frozen=True)
class AsJson:
    """The final answer is a JSON object that fits the schema; without one, `{"answer": text}`."""

    schema: Mapping[str, Json] | None = None


Choice: TypeAlias = Literal["auto", "none", "required"] | Named


@dataclass(frozen=True)
class Ask:
    """One request, as far as the answer depends on it."""

    messages: tuple[Message, ...]
    offers: tuple[ToolOffer, ...] = ()
    choice: Choice = "auto"
    form: AsText | AsJson = field(default_factory=AsText)
    parallel: bool = True


@dataclass(frozen=True)
class Text:
    """The answer is text."""

    text: str


@dataclass(frozen=True)
class Calls:
    """The answer asks for these tool calls."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True)
class Refusal:
    """The answer is a refusal."""

    text: str


Answer: TypeAlias = Text | Calls | Refusal


@dataclass(frozen=True)
class _Wish:
    name: str
    arguments: str


def decide(ask: Ask, read: Reader = sentences) -> Answer:
    """The answer, the same for the same `ask`: a search, then reading, then the report.

    Where there is nothing to search in, every other tool once, then what they said; else a text out of the
    results in the task. Asked for a plan, a plan.
    """
    task = task_of(ask.messages)
    evidence = evidence_of(ask.messages)
    wishes = _wishes(ask, task, evidence)
    if wishes:
        return Calls(_with_ids(wishes if ask.parallel else wishes[:1], ask.messages))
    return Text(_final(ask.form, task, lambda: _prose(ask, task, evidence, read)))


def _prose(ask: Ask, task: Task, evidence: Evidence, read: Reader) -> str:
    errands = errands_of(ask.messages)
    researched = evidence.searched or bool(evidence.pages)
    if not researched and asks_for_digest(task):
        text = digest(task, read)
    elif errands and not researched:
        return quoted(task.topic, errands)
    else:
        text = report(task.topic, evidence, read)
    return f"{text}\n## What other tools said\n\n{quotes(errands)}\n" if errands else text


def loop_call(ask: Ask) -> Calls:
    """One more search with a query that was not asked before, for ever."""
    turn = sum(isinstance(m, AssistantMessage) for m in ask.messages) + 1
    query = f"{' '.join(_key_words(task_of(ask.messages).topic))} {turn}".strip()
    return Calls(_with_ids([_Wish(SEARCH, _dumped({"query": query}))], ask.messages))


def told_plan(ask: Ask, fault: PlanFault) -> Text | None:
    """The plan with this fault, when the request asks for a plan."""
    form = _plan_form(ask.form)
    if form is None:
        return None
    return Text(_dumped(faulty_plan(_goal(task_of(ask.messages)), form, fault)))


def told_calls(ask: Ask, calls: tuple[tuple[str, str], ...]) -> Calls:
    """Exactly these calls (name, argument text), with ids of their own."""
    return Calls(_with_ids([_Wish(name, arguments) for name, arguments in calls], ask.messages))


def _wishes(ask: Ask, task: Task, evidence: Evidence) -> list[_Wish]:
    offers = {offer.name: offer for offer in ask.offers}
    match ask.choice:
        case "none":
            return []
        case Named(name):
            return [_some_call(offers[name], task, evidence)]
        case "auto":
            # What the task names comes first: a person may say what to search for.
            return _errands(ask, task) or _road(offers, task, evidence)
        case "required":
            first = next(iter(ask.offers))
            return _road(offers, task, evidence) or [_some_call(first, task, evidence)]


def _road(offers: dict[str, ToolOffer], task: Task, evidence: Evidence) -> list[_Wish]:
    """The next step of research, empty when there is none."""
    if evidence.pages:
        return []
    if SEARCH in offers and not evidence.searched:
        return [_call(offers[SEARCH], "query", query) for query in _queries(task)]
    if EXTRACT in offers:
        return [_call(offers[EXTRACT], "url", hit.url) for hit in unread(evidence, _PAGES)]
    return []


def _errands(ask: Ask, task: Task) -> list[_Wish]:
    made = unasked(ask.offers, ask.messages, task.topic)
    return [_Wish(name, _dumped(arguments)) for name, arguments in made]


def _some_call(offer: ToolOffer, task: Task, evidence: Evidence) -> _Wish:
    """A call of a tool that must be called, whether it makes sense now or not."""
    found = [hit for hits in evidence.hits for hit in hits]
    match offer.name:
        case "search_web":
            return _call(offer, "query", _queries(task)[0])
        case "extract_content" if found:
            return _call(offer, "url", (unread(evidence, 1) or found)[0].url)
        case _:
            return _Wish(offer.name, _dumped(_object(offer)))


def _call(offer: ToolOffer, name: str, value: str) -> _Wish:
    """A call with the value under its usual name, or under the first required one."""
    arguments = _object(offer)
    properties = offer.parameters.get("properties") or {name: {}}
    required = offer.parameters.get("required") or [name]
    key = name if name in properties else str(required[0])
    wanted = {k: v for k, v in arguments.items() if k in required}
    as_list = isinstance(arguments.get(key), list)
    return _Wish(offer.name, _dumped(wanted | {key: [value] if as_list else value}))


def _object(offer: ToolOffer) -> dict[str, Json]:
    made = sample(offer.parameters)
    return made if isinstance(made, dict) else {}


def _queries(task: Task) -> list[str]:
    """One query; for a deep task a second one of the longest key words."""
    keys = _key_words(task.topic)
    first = " ".join(keys) or " ".join(task.topic.split())[:100] or "posthouse"
    if not task.deep:
        return [first]
    longest = sorted(keys, key=lambda word: (-len(word), word))[: (len(keys) + 1) // 2]
    second = " ".join(word for word in keys if word in longest)
    return [first, second if second and second != first else f"{first} overview"]


def _key_words(topic: str) -> list[str]:
    return telling(topic)[:_KEY_WORDS]


def _final(form: AsText | AsJson, task: Task, text: Callable[[], str]) -> str:
    match form:
        case AsText():
            return text()
        case AsJson(None):
            return _dumped({"answer": text()})
        case AsJson(schema):
            wanted = _plan_form(form)
            return _dumped(plan(_goal(task), wanted) if wanted else sample(schema or {}))


def _plan_form(form: AsText | AsJson) -> PlanForm | None:
    return plan_form(form.schema) if isinstance(form, AsJson) and form.schema else None


def _goal(task: Task) -> str:
    return task.goal or task.topic


def _with_ids(wishes: list[_Wish], messages: tuple[Message, ...]) -> tuple[ToolCall, ...]:
    """The calls with ids that follow from the conversation and occur nowhere in it."""
    used = {c.id for m in messages if isinstance(m, AssistantMessage) for c in m.tool_calls}
    used |= {m.call_id for m in messages if isinstance(m, ToolMessage)}
    seed = hashlib.blake2b()
    for message in messages:
        seed.update(message.model_dump_json().encode())
    calls = list[ToolCall]()
    for wish in wishes:
        seed.update(f"{wish.name} {wish.arguments}".encode())
        while (call_id := f"call_{seed.hexdigest()[:12]}") in used:
            seed.update(b"again")
        used.add(call_id)
        calls.append(ToolCall(id=call_id, name=wish.name, arguments=wish.arguments))
    return tuple(calls)


def _dumped(value: Json) -> str:
    return orjson.dumps(value).decode()
