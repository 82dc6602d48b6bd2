"""The `@tool` decorator: a typed async function becomes something that a model can call."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import docstring_parser
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails, from_json

from posthouse.errors import ConfigurationError, ToolFailed
from posthouse.llm.messages import ToolOffer
from posthouse.tools.answer import answered, clean, cut, failed, failed_by
from posthouse.tools.model import Effect, Tool, ToolAnswer, ToolContext

MAX_ARGUMENT_CHARACTERS = 256 * 1024
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False)

log = structlog.get_logger()

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
            value = from_json(plain, allow_inf_nan=False)
        except ValueError as error:
            raise ArgumentsRefused(f"the arguments are not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise ArgumentsRefused("the arguments must be one JSON object")
        try:
            parsed = self.model.model_validate_json(plain)
        except ValidationError as error:
            raise ArgumentsRefused(self._explained(error)) from None
        return {name: getattr(parsed, field) for field, name in self.names.items()}

    def _explained(self, error: ValidationError) -> str:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        said = cut("; ".join(_in_words(detail) for detail in details[:5]), 1000)
        more = f"; and {len(details) - 5} more" if len(details) > 5 else ""
        return f"{said}{more}. The arguments are: {', '.join(self.names.values()) or 'none'}"


def tool(
    *,
    effect: Effect = Effect.READ,
    timeout_seconds: float = 30.0,
    max_result_bytes: int = 32 * 1024,
) -> Callable[[Function], Tool]:
    """Makes a Tool of a typed async function; its docstring tells the model what everything is for.

    A first parameter annotated ToolContext gets the call's context and is not shown to the model.
    Raises ConfigurationError when the function cannot be offered to a model.
    """

    def define(function: Function) -> Tool:
        name = _checked_name(function)
        description, texts = _documented(name, function)
        takes_context, arguments = arguments_of(name, function, texts)
        offer = ToolOffer(name=name, description=description, parameters=arguments.schema)

        async def call(context: ToolContext, text: str) -> ToolAnswer:
            leading = (context,) if takes_context else ()
            limits = asyncio.timeout(timeout_seconds)
            try:
                values = arguments.parse(text)
                async with limits:
                    result = await function(*leading, **values)
                return answered(result, max_result_bytes)
            except ArgumentsRefused as error:
                return failed("invalid_arguments", str(error))
            except ToolFailed as error:
                return failed_by(error)
            except TimeoutError:
                after = f" after {timeout_seconds:g} s" if limits.expired() else ""
                return failed("timeout", f"{name} timed out{after}", retryable=True)
            except Exception:
                log.exception("tool_call_broke", tool=name)
                return failed("unexpected", f"{name} failed")

        return Tool(offer, effect, timeout_seconds, max_result_bytes, call)

    return define


def _checked_name(function: Function) -> str:
    name = getattr(function, "__name__", "")
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"tool {name!r} must be an async function")
    if _NAME.fullmatch(name) is None:
        raise ConfigurationError(f"tool {name!r}: a name is 1-64 of letters, digits, _ and -")
    return name


def arguments_of(name: str, function: Function, texts: dict[str, str]) -> tuple[bool, Arguments]:
    """Whether the function takes a context, and its other parameters, described by `texts`."""
    parameters = list(inspect.signature(function).parameters.values())
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigurationError(f"tool {name!r}: unreadable annotations: {error}") from None
    takes_context = bool(parameters) and hints.get(parameters[0].name) is ToolContext
    shown = parameters[1:] if takes_context else parameters
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    # Numbered fields with the name as alias: no parameter can clash with pydantic's own names.
    for number, parameter in enumerate(shown):
        annotation = _annotation(name, parameter, hints)
        field = f"argument_{number}"
        names[field] = parameter.name
        fields[field] = (annotation, _field(parameter, annotation, texts.get(parameter.name)))
    try:
        model = create_model(name, __config__=_STRICT, **fields)
        return takes_context, Arguments(model, _schema(model), names)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"tool {name!r}: no schema for its arguments: {reason}") from None


def _annotation(name: str, parameter: inspect.Parameter, hints: dict[str, Any]) -> Any:
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise ConfigurationError(f"tool {name!r}: {parameter} cannot be given by name")
    annotation = hints.get(parameter.name)
    if annotation is None:
        raise ConfigurationError(f"tool {name!r}: annotate {parameter.name!r} with its type")
    if annotation is ToolContext:
        raise ConfigurationError(f"tool {name!r}: the ToolContext must be the first parameter")
    return annotation


def _field(parameter: inspect.Parameter, annotation: Any, text: str | None) -> Any:
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    described = any(getattr(extra, "description", None) for extra in extras)
    default = ... if parameter.default is parameter.empty else parameter.default
    if text and not described:
        return Field(default, alias=parameter.name, description=text)
    return Field(default, alias=parameter.name)


def _documented(name: str, function: Function) -> tuple[str, dict[str, str]]:
    """What the docstring says of the tool, and of its arguments by name."""
    try:
        parsed = docstring_parser.parse(inspect.getdoc(function) or "")
    except docstring_parser.ParseError:
        raise ConfigurationError(f"tool {name!r}: its docstring cannot be read") from None
    if not parsed.description:
        raise ConfigurationError(f"tool {name!r}: its docstring must say what it is for")
    return parsed.description, {
        entry.arg_name: " ".join(entry.description.split())
        for entry in parsed.params
        if entry.description
    }


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
