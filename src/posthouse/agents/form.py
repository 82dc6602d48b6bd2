"""The form that an agent's answer must have, and what is wrong with a text that has another one."""

import re
from dataclasses import dataclass
from functools import lru_cache

from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import ErrorDetails

from posthouse.errors import Fatal, readable
from posthouse.llm.messages import OutputShape
from posthouse.tools.answer import cut

MAX_CHARACTERS = 128 * 1024

_SHOWN_ERRORS = 5
# Above it their words are not worth the time that it takes to make them.
_MOST_ERRORS = 1000
_FENCE = "```"
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class Form:
    """An output model, and its shape as a provider is told."""

    model: type[BaseModel]
    shape: OutputShape

    def read(self, text: str) -> tuple[str, str]:
        """The JSON text of the answer, without what a model wraps around it; and what is wrong with it, or ""."""
        inner = readable(unwrapped(text))
        if len(inner) > MAX_CHARACTERS:
            return text, self._wrong(f"it is {len(inner)} characters long, above {MAX_CHARACTERS}")
        try:
            self.model.model_validate_json(inner)
        except ValidationError as error:
            return text, self._wrong(_explained(error))
        return inner, ""

    def _wrong(self, reason: str) -> str:
        return (
            f"Your answer must be one JSON object of the form {self.shape.name!r}, and it is not: {reason}. "
            "Write the whole object again, mended, with nothing before or after it."
        )


@lru_cache(maxsize=256)
def form_of(model: type[BaseModel]) -> Form:
    """The form of an output model. Raises Fatal when its JSON is no object."""
    if issubclass(model, RootModel):
        raise Fatal(f"output model {model.__name__!r} must have fields: a RootModel is no object")
    name = _UNSAFE.sub("_", model.__name__)[:64]
    return Form(model, OutputShape(name=name, parameters=model.model_json_schema()))


def unwrapped(text: str) -> str:
    """The object in a code fence, where the text is not the object itself."""
    plain = text.strip()
    start = plain.find(_FENCE)
    if plain.startswith("{") or start < 0:
        return plain
    end = plain.rfind(_FENCE)
    inside = plain[start:end] if end > start else plain[start:]
    brace = inside.find("{")
    return inside[brace:].strip() if brace >= 0 else plain


def _explained(error: ValidationError) -> str:
    count = error.error_count()
    if count > _MOST_ERRORS:
        return f"{count} things in it are wrong"
    details = error.errors(include_url=False, include_context=False, include_input=False)
    said = cut("; ".join(_in_words(detail) for detail in details[:_SHOWN_ERRORS]), 1000)
    return f"{said}; and {count - _SHOWN_ERRORS} more" if count > _SHOWN_ERRORS else said


def _in_words(detail: ErrorDetails) -> str:
    where = cut(".".join(str(part) for part in detail["loc"]), 100)
    match detail["type"]:
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden":
            return f"{where} does not belong there"
        case _:
            message = cut(detail["msg"], 300)
            said = f"{message[:1].lower()}{message[1:]}"
            return f"{where}: {said}" if where else said
