"""A question to a person, and the answer."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class Kind(StrEnum):
    """What a person is asked for."""

    QUESTION = "question"
    APPROVAL = "approval"
    PLAN = "plan"
    BUDGET = "budget"
    DOUBT = "doubt"


class Decision(StrEnum):
    """What a person may say: do it, do it in another way, do not, or something else in its place."""

    APPROVE = "approve"
    EDIT = "edit"
    REJECT = "reject"
    RESPOND = "respond"


class OnTimeout(StrEnum):
    """What follows when nobody answers in time; `wait` is for as long as it takes."""

    WAIT = "wait"
    REJECT = "reject"
    DEFAULT = "default"
    FAIL = "fail"


class Request(BaseModel):
    """A question as it is stored and shown.

    `form` is a JSON Schema: of the value that answers a question, or of what an edit may say; None for any text.
    `arguments` is exactly what an approval is for. `digest` binds the answer to what was asked.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    question: str
    decisions: tuple[Decision, ...] = (Decision.RESPOND,)
    form: dict[str, Any] | None = None
    arguments: Any = None
    tool: str = ""
    agent: str = ""
    on_timeout: OnTimeout = OnTimeout.WAIT
    default: Any = None
    digest: str = ""


class Answer(BaseModel):
    """What came of a question; `timed_out` when nobody answered and its policy did."""

    model_config = ConfigDict(frozen=True)

    decision: Decision
    value: Any = None
    arguments: Any = None
    comment: str = ""
    timed_out: bool = False

    @property
    def approved(self) -> bool:
        """Whether what was asked for is to be done, as it was or as it was edited."""
        return self.decision in (Decision.APPROVE, Decision.EDIT)


@dataclass(frozen=True)
class Question:
    """A question under a step key; `expires_seconds` None for as long as it takes."""

    key: str
    request: Request
    expires_seconds: float | None = None


def input_id(run_id: str, step: str) -> str:
    """The id of the question that a step asks; the same however often it is asked."""
    return f"{run_id}-{hashlib.sha1(step.encode(), usedforsecurity=False).hexdigest()[:16]}"
