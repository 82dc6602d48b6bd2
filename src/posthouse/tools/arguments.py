"""The arguments of a tool: their schema from a signature, their values from what a model wrote."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, from_json

from posthouse.errors import ConfigurationError
from posthouse.tools.answer import clean, cut
from posthouse.tools.model import ToolContext

MAX_ARGUMENT_CHARACTERS = 256 * 1024
# Above it their words are not worth the time that it takes to make them.
_MOST_ERRORS = 1000
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False)

Function = Callable[..., Awaitable[Any]]


class ArgumentsRefused(Exception):
    """The model's arguments cannot be used; the message tells it why."""


@dataclass(frozen=True)
class Arguments:
    """The parameters of one tool: model, JSON Schema, and each field's name in the function."""

    model: type[BaseModel]
    schema: dict[str, Any]
    names: dict[str, str]

    def parse(self, text: str) -> dict[str, Any]:
        """The validated arguments by parameter name. Raises ArgumentsRefused."""
        size = len(text)
        if size > MAX_ARGUMENT_CHARACTERS:
            raise ArgumentsRefused(
                f"the arguments are {size} characters long, above {MAX_ARGUMENT_CHARACTERS}"
            )
        plain = clean(text).strip() or "{}"
        try:
            whole = isinstance(from_json(plain, allow_inf_nan=False), dict)
        except ValueError as error:
            raise ArgumentsRefused(f"the arguments are not valid JSON: {error}") from None
        if not whole:
            raise ArgumentsRefused("the arguments must be one JSON object")
        try:
            parsed = self.model.model_validate_json(plain)
        except ValidationError as error:
            raise ArgumentsRefused(self._explained(error)) from None
        return {name: getattr(parsed, field) for field, name in self.names.items()}

    def _explained(self, error: ValidationError) -> str:
        known = f"The arguments are: {', '.join(self.names.values()) or 'none'}"
        count = error.error_count()
        if count > _MOST_ERRORS:
            return f"{count} things in the arguments are wrong. {known}"
        details = error.errors(include_url=False, include_context=False, include_input=False)
        said = cut("; ".join(_in_words(detail) for detail in details[:5]), 1000)
        more = f"; and {count - 5} more" if count > 5 else ""
        return f"{said}{more}. {known}"


def arguments_of(name: str, function: Function, texts: Mapping[str, str]) -> tuple[bool, Arguments]:
    """Whether the function takes a context, and its other parameters, described by `texts`.

    Raises ConfigurationError when one has no type, no schema or no description, or when a text is of none.
    """
    parameters = list(inspect.signature(function).parameters.values())
    hints = _hints(name, function)
    takes_context = bool(parameters) and hints.get(parameters[0].name) is ToolContext
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    # Numbered fields with the name as alias: no parameter can clash with pydantic's own names.
    for number, parameter in enumerate(parameters[1:] if takes_context else parameters):
        annotation = _annotation(name, parameter, hints)
        field = f"argument_{number}"
        names[field] = parameter.name
        fields[field] = (annotation, _field(name, parameter, annotation, texts))
    if strange := texts.keys() - {parameter.name for parameter in parameters}:
        raise ConfigurationError(
            f"tool {name!r}: its docstring describes {min(strange)!r}, which is no argument of it"
        )
    try:
        model = create_model(name, __config__=_STRICT, **fields)
        return takes_context, Arguments(model, _schema(model), names)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"tool {name!r}: no schema for its arguments: {reason}") from None


def _hints(name: str, function: Function) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise ConfigurationError(f"tool {name!r}: unreadable annotations: {error}") from None


def _annotation(name: str, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise ConfigurationError(f"tool {name!r}: {parameter} cannot be given by name")
    annotation = hints.get(parameter.name)
    if annotation is None:
        raise ConfigurationError(f"tool {name!r}: annotate {parameter.name!r} with its type")
    if annotation is ToolContext:
        raise ConfigurationError(f"tool {name!r}: the ToolContext must be the first parameter")
    if isinstance(parameter.default, FieldInfo):
        raise ConfigurationError(
            f"tool {name!r}: write {parameter.name!r} as Annotated[<type>, Field(...)] = <default>"
        )
    return annotation


def _field(
    name: str, parameter: inspect.Parameter, annotation: Any, texts: Mapping[str, str]
) -> Any:
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    described = any(getattr(extra, "description", None) for extra in extras)
    default = ... if parameter.default is parameter.empty else parameter.default
    if described:
        return Field(default, alias=parameter.name)
    text = texts.get(parameter.name)
    if not text:
        raise ConfigurationError(f"tool {name!r}: say in its docstring what {parameter.name!r} is")
    return Field(default, alias=parameter.name, description=text)


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    schema.pop("title", None)
    schema.setdefault("properties", {})
    for entry in schema["properties"].values():
        entry.pop("title", None)
    return schema


def _in_words(detail: ErrorDetails) -> str:
    where = cut(".".join(str(part) for part in detail["loc"]), 100)
    match detail["type"]:
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden":
            return f"{where} is not an argument of this tool"
        case _:
            message = detail["msg"]
            return f"{where}: {message[:1].lower()}{message[1:]}"
