"""The chat route: check, decide, and answer as told."""

import functools
import hashlib
from collections import OrderedDict

from starlette.requests import Request

from posthouse import clock
from posthouse.embedded.standin.chat import ChatRequest, chat_request, wire_bytes
from posthouse.embedded.standin.decide import (
    Answer,
    Ask,
    Refusal,
    Text,
    decide,
    loop_call,
    told_calls,
    told_plan,
)
from posthouse.embedded.standin.prose import sentences
from posthouse.embedded.standin.refused import (
    Refused,
    check_key,
    check_model,
    parsed,
    told_status,
)
from posthouse.embedded.standin.replies import JSON, SSE, Reply
from posthouse.embedded.standin.script import (
    Behaviour,
    CallTools,
    FaultyPlan,
    Hold,
    Loop,
    Pace,
    Record,
    Refuse,
    Say,
    Script,
    Status,
)
from posthouse.embedded.standin.wire import (
    Envelope,
    Stream,
    Usage,
    completion_tokens,
    limited,
    prompt_tokens,
    streamed,
    whole_body,
)

_ANSWERS, _PAGES = 1024, 256


class Completions:
    """Answers chat requests by the script, else by what `decide` says."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self._read = functools.lru_cache(maxsize=_PAGES)(sentences)

    async def create(self, request: Request) -> Reply:
        """The answer to one request. Raises Refused."""
        record = self._script.received()
        try:
            return await self._create(request, record)
        except Refused as refused:
            record.status, record.finished = refused.status, True
            raise

    async def _create(self, request: Request, record: Record) -> Reply:
        check_key(request)
        body = parsed(await request.body())
        messages = wire_bytes(body, "messages")
        record.fingerprint = hashlib.blake2b(messages, digest_size=16).hexdigest()
        wanted = chat_request(body)
        record.model, record.stream = wanted.model, wanted.stream
        check_model(wanted.model)
        behaviour = self._script.next_behaviour()
        record.behaviour = behaviour.type if behaviour else None
        if isinstance(behaviour, Status):
            raise told_status(behaviour)
        rest = wire_bytes(body, "tools", "tool_choice", "response_format", "parallel_tool_calls")
        answer = self._answer(wanted.ask, behaviour, hashlib.blake2b(messages + rest).digest())
        return self._reply(wanted, answer, behaviour, record)

    def _answer(self, ask: Ask, behaviour: Behaviour | None, key: bytes) -> Answer:
        match behaviour:
            case Loop():
                return loop_call(ask)
            case Say(text=text):
                return Text(text)
            case Refuse(text=text):
                return Refusal(text)
            case CallTools(calls=calls):
                return told_calls(ask, tuple((call.name, call.arguments) for call in calls))
            case FaultyPlan(fault=fault):
                return told_plan(ask, fault) or self._decided(ask, key)
            case _:
                return self._decided(ask, key)

    def _decided(self, ask: Ask, key: bytes) -> Answer:
        known = self._answers.get(key)
        if known is None:
            known = self._answers[key] = decide(ask, self._read)
            if len(self._answers) > _ANSWERS:
                self._answers.popitem(last=False)
        return known

    def _reply(
        self, wanted: ChatRequest, answer: Answer, behaviour: Behaviour | None, record: Record
    ) -> Reply:
        answer, reason = limited(answer, wanted.max_tokens)
        usage = Usage(prompt_tokens(wanted.ask.messages), completion_tokens(answer))
        name = f"chatcmpl-{record.fingerprint}{record.n:08x}"
        envelope = Envelope(name, clock.wall_ms() // 1000, wanted.model)
        pace = self._script.pace
        if wanted.stream:
            told = usage if wanted.include_usage else None
            stream, media_type = streamed(answer, reason, envelope, told), SSE
        else:
            stream, media_type = _halves(whole_body(answer, reason, envelope, usage)), JSON
            pace = Pace(pace.latency_ms + pace.token_ms * (usage.completion // 6))
        gate = self._script.gate(behaviour.name) if isinstance(behaviour, Hold) else None
        return Reply(stream, media_type, pace, behaviour, gate, record)


def _halves(body: bytes) -> Stream:
    """One body in two pieces, so that faults and holds have a middle to be in."""
    middle = len(body) // 2
    return Stream(b"", (body[:middle], body[middle:]), b"")
