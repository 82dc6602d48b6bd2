"""Calls about which a person is asked before they are made, and those that a crash left in doubt."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from posthouse.agents.assignment import Assignment
from posthouse.inputs.model import Answer, Decision, Kind, Question, Request
from posthouse.journal.model import digest_of
from posthouse.llm.messages import ToolCall
from posthouse.tools.answer import clean, cut, failed, mistaken
from posthouse.tools.model import Approval, Effect, Tool, ToolAnswer

_ALL = (Decision.APPROVE, Decision.EDIT, Decision.REJECT, Decision.RESPOND)
_IN_DOUBT = (Decision.APPROVE, Decision.REJECT, Decision.RESPOND)
_ALWAYS = Approval()
_NOTE_BYTES = 2000
_DEEPEST = 64


@dataclass(frozen=True)
class Permitted:
    """The call is made, with these arguments; `note` says to the model that a person changed them."""

    call: ToolCall
    note: str = ""


@dataclass(frozen=True)
class Instead:
    """The call is not made; this is its answer."""

    answer: ToolAnswer


Permission: TypeAlias = Permitted | Instead


class Approvals:
    """Says which calls wait for a person, and asks."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools

    def first(
        self, job: Assignment, calls: Iterable[ToolCall], *, outside: bool
    ) -> tuple[str, ...]:
        """The ids of the calls that wait for a person; `outside` when their agent has read text from outside.

        Arguments that no tool takes are told to the model, and nobody is asked.
        """
        waiting = self._waiting(job, calls, outside=outside)
        return tuple(call.id for call, tool in waiting if problem_with(tool, call) is None)

    def unfit(
        self, job: Assignment, calls: Iterable[ToolCall], *, outside: bool
    ) -> tuple[str, ...]:
        """The ids of those that would wait for a person, had they arguments that a tool takes: they are not made."""
        waiting = self._waiting(job, calls, outside=outside)
        return tuple(call.id for call, tool in waiting if problem_with(tool, call) is not None)

    def _waiting(
        self, job: Assignment, calls: Iterable[ToolCall], *, outside: bool
    ) -> Iterator[tuple[ToolCall, Tool]]:
        for call in calls:
            tool = self._tool(job, call)
            if tool is not None and waits_for_a_person(tool, outside=outside):
                yield call, tool

    def _tool(self, job: Assignment, call: ToolCall) -> Tool | None:
        return self._tools.get(call.name) if call.name in job.agent.spec.tools else None

    async def permission(
        self, job: Assignment, key: str, call: ToolCall, tool: Tool, *, outside: bool
    ) -> Permission:
        """What a person says of the call; until then the run waits without a worker. Raises InputExpired."""
        arguments = arguments_of(call)
        if tool.question is not None:
            asked = tool.question(arguments)
            digest = digest_of(call.name, arguments)
            request = asked.model_copy(update={"agent": job.name, "digest": digest})
            answer = await job.steps.ask(Question(f"{key}/question", request))
            return Instead(_said(answer, tool))
        approval = tool.approval or _ALWAYS
        request = _request(job, call, tool, arguments, outside=outside and tool.approval is None)
        question = Question(f"{key}/approval", request, approval.expires_seconds)
        return _permission(await job.steps.ask(question), call, arguments, tool)

    async def doubt(self, job: Assignment, key: str, call: ToolCall) -> Answer:
        """What a person says of a call that may or may not have taken effect: again, leave it, or what happened."""
        arguments: Any
        try:
            arguments = arguments_of(call)
        except ValueError:  # the tool took what no JSON here can say
            arguments = cut(clean(call.arguments), _NOTE_BYTES)
        request = Request(
            kind=Kind.DOUBT,
            question=(
                f"It is not known whether a call of {call.name} by {job.name} took effect: what made it ended "
                "before the answer came. Shall it be made again?"
            ),
            decisions=_IN_DOUBT,
            arguments=arguments,
            tool=call.name,
            agent=job.name,
            digest=digest_of(call.name, arguments),
        )
        return await job.steps.ask(Question(f"{key}/doubt", request))


def waits_for_a_person(tool: Tool, *, outside: bool) -> bool:
    """Whether a person is asked before a call; who has read text from outside changes nothing without one."""
    if tool.question is not None or tool.approval is not None:
        return True
    return outside and tool.effect is Effect.WRITE and tool.approve_after_outside


def problem_with(tool: Tool, call: ToolCall) -> ToolAnswer | None:
    """What is wrong with the arguments, so that no person is asked about them."""
    if tool.check is not None and (problem := tool.check(call.arguments)) is not None:
        return problem
    try:
        arguments_of(call)
    except ValueError as error:
        return mistaken("invalid_arguments", str(error))
    return None


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """The arguments as a person is shown them. Raises ValueError: no JSON object, numbers of more than 64 bits."""
    text = clean(call.arguments).strip() or "{}"
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
        orjson.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the arguments are no plain JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("the arguments must be one JSON object")
    if _too_deep(value):
        raise ValueError(f"the arguments are nested deeper than {_DEEPEST} levels")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that JSON has")
    return number


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for one in level for inner in _inside(one)]
    return bool(level)


def _inside(value: object) -> Iterable[object]:
    match value:
        case dict():
            return value.values()
        case list():
            return value
        case _:
            return ()


def said_by(answer: Answer, tool: Tool) -> ToolAnswer:
    """A person's own words as the answer to a call."""
    value = answer.value
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return ToolAnswer(text=cut(text, tool.max_result_bytes), trusted=True)


def _said(answer: Answer, tool: Tool) -> ToolAnswer:
    return said_by(answer, tool) if answer.decision is Decision.RESPOND else _rejected(answer)


def _permission(
    answer: Answer, call: ToolCall, arguments: dict[str, Any], tool: Tool
) -> Permission:
    match answer.decision:
        case Decision.APPROVE:
            return Permitted(_with(call, arguments))
        case Decision.EDIT if answer.arguments == arguments:
            return Permitted(_with(call, arguments))
        case Decision.EDIT:
            edited = _with(call, answer.arguments)
            text = cut(edited.arguments, _NOTE_BYTES)
            return Permitted(edited, f"A person changed the arguments of this call to {text}.")
        case _:
            return Instead(_said(answer, tool))


def _with(call: ToolCall, arguments: Any) -> ToolCall:
    """What a person saw is what is sent, letter by letter."""
    return call.model_copy(update={"arguments": orjson.dumps(arguments).decode()})


def _rejected(answer: Answer) -> ToolAnswer:
    if answer.timed_out:
        message = (
            "This call was not made: it needs a person's approval, and nobody answered in time."
        )
    elif answer.comment:
        message = f"This call was not made: a person rejected it and said: {answer.comment}"
    else:
        message = "This call was not made: a person rejected it."
    return failed("rejected", message).model_copy(update={"trusted": True})


def _request(
    job: Assignment, call: ToolCall, tool: Tool, arguments: dict[str, Any], *, outside: bool
) -> Request:
    why = " It has read text from outside, which may have led it to this." if outside else ""
    return Request(
        kind=Kind.APPROVAL,
        question=f"{job.name} wants to call {call.name}.{why}",
        decisions=_ALL,
        form=tool.offer.parameters,
        arguments=arguments,
        tool=call.name,
        agent=job.name,
        on_timeout=(tool.approval or _ALWAYS).on_timeout,
        digest=digest_of(call.name, arguments),
    )
