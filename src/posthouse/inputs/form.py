"""Answers against the JSON Schema of a form, in bounded time whatever is in either."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from typing import Any, TypeAlias

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.validators import extend
from pydantic_core import SchemaError as NoPattern
from pydantic_core import SchemaValidator, core_schema
from referencing import Registry
from referencing.exceptions import Unresolvable

MOST_CHECKS = 50_000
MOST_PROBLEMS = 21
LONGEST_MESSAGE = 300
LONGEST_LOCATION = 200

Check: TypeAlias = Callable[[Any, Any, Any, Any], Any]


class FormUnusable(ValueError):
    """The form is no JSON Schema that can be checked here, or the answer takes too long to check against it."""


def check_form(form: Mapping[str, Any]) -> None:
    """Raises FormUnusable when no answer could be checked against the form."""
    _validator(_text(form))


def problems(form: Mapping[str, Any], value: Any, at: str) -> tuple[dict[str, str], ...]:
    """What is wrong with a value, each with its location (which begins with `at`), at most 21. Raises FormUnusable."""
    validator = _validator(_text(form))
    left = _LEFT.set([MOST_CHECKS])
    try:
        found = list(islice(validator.iter_errors(value), MOST_PROBLEMS))
        return tuple(_problem(error, at) for error in found)
    except (Unresolvable, ArithmeticError) as error:
        raise FormUnusable(f"the form cannot be checked: {str(error)[:LONGEST_MESSAGE]}") from None
    except RecursionError:
        raise FormUnusable(_TOO_MUCH) from None
    finally:
        _LEFT.reset(left)


def _problem(error: ValidationError, at: str) -> dict[str, str]:
    # Of a choice between several forms: what is wrong by the one that was most likely meant.
    meant = best_match([error]) or error
    where = ".".join((at, *map(str, meant.absolute_path)))
    return {"location": where[:LONGEST_LOCATION], "message": meant.message[:LONGEST_MESSAGE]}


_TOO_MUCH = "the answer is too large or too deep to be checked against the form"
_LEFT: ContextVar[list[int]] = ContextVar("checks left")


def _counted(check: Check) -> Check:
    def counted(validator: Any, said: Any, instance: Any, schema: Any) -> Any:
        left = _LEFT.get()
        left[0] -= 1
        if left[0] < 0:
            raise FormUnusable(_TOO_MUCH)
        return check(validator, said, instance, schema)

    return counted


@lru_cache(maxsize=1024)
def _matcher(pattern: str) -> SchemaValidator:
    """In linear time, which Python's own expressions do not promise."""
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except NoPattern:
        raise FormUnusable(f"the form's pattern {pattern[:80]!r} cannot be checked") from None


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _matcher(pattern).isinstance_python(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, inner in patterns.items():
            for name, value in instance.items():
                if _matcher(pattern).isinstance_python(name):
                    yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    patterns = [_matcher(pattern) for pattern in schema.get("patternProperties", {})]
    for name, value in instance.items():
        if name in schema.get("properties", {}):
            continue
        if any(pattern.isinstance_python(name) for pattern in patterns):
            continue
        if allowed is False:
            yield ValidationError("this is not asked for", path=[name])
        else:
            yield from validator.descend(value, allowed, path=name)


def _required(
    validator: Any, names: list[str], instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for name in names:
            if name not in instance:
                yield ValidationError("this is missing", path=[name])


def _unique_items(
    validator: Any, wanted: bool, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if wanted and validator.is_type(instance, "array"):
        texts = {json.dumps(item, sort_keys=True) for item in instance}
        if len(texts) < len(instance):
            yield ValidationError("something in the list is there twice")


_OWN: dict[str, Check] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "required": _required,
    "uniqueItems": _unique_items,
}
_Bounded = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {name: _counted(check) for name, check in {**Draft202012Validator.VALIDATORS, **_OWN}.items()},
)


def _text(form: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(form)
    except TypeError:
        raise FormUnusable("the form is no plain JSON") from None


@lru_cache(maxsize=256)
def _validator(text: bytes) -> Any:
    # What these two come to together is decided by Python's own expressions.
    if b'"unevaluatedProperties"' in text and b'"patternProperties"' in text:
        raise FormUnusable("the form has unevaluatedProperties beside patternProperties")
    schema = orjson.loads(text)
    try:
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        reason = error.message if isinstance(error, SchemaError) else "it is too deep"
        raise FormUnusable(f"the form is no JSON Schema: {reason[:LONGEST_MESSAGE]}") from None
    # Without a registry of its own it would ask the network for a schema that it does not know.
    return _Bounded(schema, registry=Registry())
