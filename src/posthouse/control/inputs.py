"""What a person says to a question: checked against what was asked, then recorded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import structlog

from posthouse.errors import Conflict, Gone, InvalidAnswer
from posthouse.inputs.form import FormUnusable, problems
from posthouse.inputs.model import Answer, Decision, Kind, Request
from posthouse.inputs.store import CHANGED, InputRequest, Inputs, State
from posthouse.logs import bind_run
from posthouse.runs.model import RunRecord

MOST_LISTED = 20
# What is done or paid for on a yes: the same request sent again must not be a yes to the next one.
_SEEN = frozenset(Kind) - {Kind.QUESTION}
_HEAD = 200
_ANY_TEXT = {"type": "string", "minLength": 1}
_ANY_ARGUMENTS = {"type": "object"}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Reply:
    """What a person said. `value` and `arguments` are there only when `said` names them: null is an answer too.

    `digest` is that of what the person saw, "" for whatever is asked now.
    """

    decision: Decision | None = None
    value: Any = None
    arguments: Any = None
    comment: str = ""
    digest: str = ""
    said: frozenset[str] = frozenset()


class Replies:
    """Records what people say."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    async def answer(self, input_id: str, tenant: str, reply: Reply) -> InputRequest:
        """The question with its answer, which may have been given before in the same words.

        Raises NotFound, InvalidAnswer, Conflict (answered otherwise, changed meanwhile, or its run has ended), Gone.
        """
        asked = await self._inputs.get(input_id, tenant)
        _check_state(asked, reply)
        answer = answer_of(asked.request, reply)
        first = await self._inputs.answer(asked, tenant, answer)
        with bind_run(asked.run_id):
            _log.info(
                "input_answered", input_id=input_id, decision=answer.decision, repeated=not first
            )
        return await self._inputs.get(input_id, tenant)

    async def answer_run(self, record: RunRecord, tenant: str, reply: Reply) -> InputRequest:
        """The same for the one open question of a run and of all below it.

        Raises Conflict too when none is open, or more than one: then it names them; InvalidAnswer when the question is
        one that a repeated request must not answer by chance, and the reply does not say that it was seen.
        """
        waiting = await self._inputs.open_ids(record.run_id, record.root)
        if not waiting:
            raise Conflict(f"the run waits for no answer; it is {record.status}")
        if len(waiting) > 1:
            listed = await self._inputs.several(waiting[:MOST_LISTED], tenant)
            raise Conflict(
                f"{len(waiting)} questions are open; answer each at /inputs/<id>",
                errors=tuple(_listed(asked) for asked in listed),
            )
        if not reply.digest:
            asked = await self._inputs.get(waiting[0], tenant)
            if asked.request.kind in _SEEN:
                _refuse("digest", f"say what was seen, or answer at /inputs/{asked.input_id}")
        return await self.answer(waiting[0], tenant, reply)


def answer_of(request: Request, reply: Reply) -> Answer:
    """The answer that the reply gives to the request. Raises InvalidAnswer."""
    decision = reply.decision
    if decision is None:
        if request.decisions != (Decision.RESPOND,):
            _refuse("decision", f"say which: {', '.join(request.decisions)}")
        decision = Decision.RESPOND
    if decision not in request.decisions:
        _refuse("decision", f"must be one of: {', '.join(request.decisions)}")
    parts = _parts(request, decision)
    for part, given in (("value", reply.value), ("arguments", reply.arguments)):
        if part in reply.said and part not in parts:
            _refuse(part, f"does not go with {decision}")
        if part in parts and part not in reply.said:
            _refuse(part, f"{decision} needs it")
        if part in parts:
            _check_form(parts[part], given, part)
    return Answer(
        decision=decision, value=reply.value, arguments=reply.arguments, comment=reply.comment
    )


def _parts(request: Request, decision: Decision) -> dict[str, dict[str, Any]]:
    """What goes with a decision, and the form of it.

    Where one may edit, the form is that of the arguments, and what is said in their place is text; where one may
    not, it is that of the value, with which a question is answered and, say, an extension is approved.
    """
    may_edit = Decision.EDIT in request.decisions
    match decision:
        case Decision.EDIT:
            return {"arguments": request.form or _ANY_ARGUMENTS}
        case Decision.RESPOND if may_edit or request.form is None:
            return {"value": _ANY_TEXT}
        case Decision.RESPOND | Decision.APPROVE if not may_edit and request.form is not None:
            return {"value": request.form}
        case _:
            return {}


def _check_state(asked: InputRequest, reply: Reply) -> None:
    if asked.state is State.EXPIRED:
        raise Gone("nobody answered in time; the run went on without an answer")
    if asked.state is State.CLOSED:
        raise Conflict("the run has ended and waits for this no more")
    if reply.digest and reply.digest != asked.request.digest:
        raise Conflict(CHANGED)


def _check_form(form: dict[str, Any], value: Any, at: str) -> None:
    try:
        wrong = problems(form, value, at)
    except FormUnusable as error:
        _refuse(at, str(error))
    if wrong:
        _refuse_all(wrong)


def _refuse(location: str, message: str) -> NoReturn:
    _refuse_all(({"location": location, "message": message},))


def _refuse_all(wrong: Sequence[dict[str, str]]) -> NoReturn:
    first = f"{wrong[0]['location']}: {wrong[0]['message']}"
    raise InvalidAnswer(f"the answer does not fit what was asked: {first}", errors=tuple(wrong))


def _listed(asked: InputRequest) -> dict[str, str]:
    return {"location": asked.input_id, "message": asked.request.question[:_HEAD]}
