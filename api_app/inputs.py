"""What goes over the wire about questions to people."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from posthouse.clock import iso
from posthouse.control.inputs import Reply
from posthouse.inputs.model import Decision
from posthouse.inputs.store import InputRequest


class InputAnswer(BaseModel):
    """What a person says to a question."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"value": {"colour": "blue"}}, {"decision": "approve", "comment": "Fine."}]
        },
    )

    decision: Decision | None = Field(
        None, description="Left out, it is `respond` where nothing else can be said."
    )
    value: Any = Field(None, description="With `respond`: what the question's form says.")
    arguments: Any = Field(None, description="With `edit`: the arguments in place of those shown.")
    comment: str = Field("", max_length=2000, description="For whoever reads it; kept.")
    digest: str = Field(
        "", max_length=64, description="That of what you saw: 409 when something else is asked now."
    )

    def reply(self) -> Reply:
        """The same as the core takes it."""
        return Reply(
            decision=self.decision,
            value=self.value,
            arguments=self.arguments,
            comment=self.comment,
            digest=self.digest,
            said=frozenset(self.model_fields_set),
        )


def input_view(asked: InputRequest) -> dict[str, Any]:
    """A question as it is shown."""
    request = asked.request
    return {
        "input_id": asked.input_id,
        "run_id": asked.run_id,
        "root": asked.root,
        "step": asked.step,
        "agent": request.agent or None,
        "tool": request.tool or None,
        "kind": request.kind,
        "question": request.question,
        "decisions": list(request.decisions),
        "form": request.form,
        "arguments": request.arguments,
        "digest": request.digest,
        "on_timeout": request.on_timeout,
        "default": request.default,
        "state": asked.state,
        "answer": _answer_view(asked),
        "created_at": iso(asked.created_at),
        "expires_at": iso(asked.expires_at) if asked.expires_at else None,
    }


def _answer_view(asked: InputRequest) -> dict[str, Any] | None:
    if asked.answer is None or asked.answered_at is None:
        return None
    given = asked.answer
    return {
        "decision": given.decision,
        "value": given.value,
        "arguments": given.arguments,
        "comment": given.comment,
        "answered_at": iso(asked.answered_at),
    }
