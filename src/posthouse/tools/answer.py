"""From what a function returned, or from what went wrong, to the text that the model is told."""

import orjson
from pydantic_core import to_json

from posthouse.errors import ToolFailed
from posthouse.tools.model import ToolAnswer, ToolProblem

CUT_MARK = "… [cut]"
_MESSAGE_BYTES = 2000


def clean(text: str) -> str:
    """The text without lone surrogates, which no store and no model takes."""
    return text.encode("utf-8", "replace").decode()


def cut(text: str, limit: int) -> str:
    """The text in at most `limit` bytes of UTF-8; what was cut ends with a mark that says so."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode()
    mark = CUT_MARK.encode()
    if limit < len(mark):
        return encoded[:limit].decode("utf-8", "ignore")
    return encoded[: limit - len(mark)].decode("utf-8", "ignore") + CUT_MARK


def cut_for_json(text: str, limit: int) -> str:
    """The text cut to at most `limit` bytes inside a JSON document, escapes included."""
    room, short = limit, cut(text, limit)
    while (size := len(orjson.dumps(short)) - 2) > limit:
        room = room * limit // size - 1
        short = cut(text, max(room, 0))
    return short


def answered(value: object, limit: int) -> ToolAnswer:
    """The answer for a function's result: a str as it is, a ToolAnswer with its sources, else JSON.

    Raises ValueError or TypeError when the value has no JSON form.
    """
    match value:
        case ToolAnswer():
            return value.model_copy(update={"text": cut(value.text, limit), "mistaken": False})
        case str():
            return ToolAnswer(text=cut(value, limit))
        case _:
            return ToolAnswer(text=cut(to_json(value, inf_nan_mode="null").decode(), limit))


def failed(
    kind: str, message: str, *, retryable: bool = False, status_code: int | None = None
) -> ToolAnswer:
    """The answer that tells the model what went wrong, as JSON it can read."""
    problem = ToolProblem(
        error=clean(kind),
        message=cut(message, _MESSAGE_BYTES),
        retryable=retryable,
        status_code=status_code,
    )
    return ToolAnswer(text=problem.model_dump_json(exclude_none=True), problem=problem)


def mistaken(kind: str, message: str) -> ToolAnswer:
    """The answer to a call that cannot be made as the model wrote it."""
    return failed(kind, message).model_copy(update={"mistaken": True})


def failed_by(error: ToolFailed) -> ToolAnswer:
    """The answer for a failure that the tool itself reported."""
    return failed(error.kind, str(error), retryable=error.retryable, status_code=error.status_code)
