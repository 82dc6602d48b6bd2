"""A value that a JSON Schema accepts, the same one each time."""

import math
import re
from collections.abc import Mapping
from typing import TypeAlias

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
Schema: TypeAlias = Mapping[str, Json]

_FORMATS = {
    "date-time": "2000-01-01T00:00:00Z",
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "courier@example.org",
    "hostname": "example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.org/",
}
_SPELLINGS = (
    "text", "a", "A", "1", "12", "123", "1234", "0.1", "a1", "A1", "a-1", "a_1", "a.b", "a:b",
    "a/b", "1.0.0", "v1", "true", "#000000", "+10000000000", "01HZZZZZZZZZZZZZZZZZZZZZZZ", "0" * 32,
    "0" * 64, *_FORMATS.values(),
)  # fmt: skip


class _Endless(Exception):
    """On this way the schema refers to itself again."""


def sample(schema: Schema, text: str = "stand-in") -> Json:
    """A value that the schema accepts; its free strings are `text`, cut to fit.

    Patterns are met from a list of common spellings. A schema that nothing finite fits gives None.
    """
    try:
        return _Sampler(schema, text).value(schema)
    except _Endless:
        return None


class _Sampler:
    def __init__(self, root: Schema, text: str) -> None:
        self._root = root
        self._text = text
        self._entered: list[str] = []
        self._variant = 0

    def value(self, schema: Json | Schema) -> Json:
        if not isinstance(schema, Mapping):
            return self._text
        if isinstance(ref := schema.get("$ref"), str):
            return self._referred(ref, schema)
        if isinstance(parts := schema.get("allOf"), list) and parts:
            return self.value(_merged(_without(schema, "allOf"), *parts))
        if "const" in schema:
            return schema["const"]
        if isinstance(choices := schema.get("enum"), list) and choices:
            return choices[self._variant % len(choices)]
        for word in ("anyOf", "oneOf"):
            if isinstance(ways := schema.get(word), list) and ways:
                return self._first_that_ends(_without(schema, word), ways)
        return self._typed(schema)

    def _referred(self, ref: str, schema: Schema) -> Json:
        if ref in self._entered:
            raise _Endless
        self._entered.append(ref)
        try:
            return self.value(_merged(_without(schema, "$ref"), _target(self._root, ref)))
        finally:
            self._entered.pop()

    def _first_that_ends(self, rest: Schema, ways: list[Json]) -> Json:
        for way in ways:
            try:
                return self.value(_merged(rest, way))
            except _Endless:
                continue
        raise _Endless

    def _typed(self, schema: Schema) -> Json:
        match _kind(schema):
            case "null":
                return None
            case "boolean":
                return True
            case "integer":
                return _number(schema, self._variant, whole=True)
            case "number":
                return _number(schema, self._variant, whole=False)
            case "array":
                return self._array(schema)
            case "object":
                return self._object(schema)
            case _:
                return _string(
                    schema, f"{self._text} {self._variant}" if self._variant else self._text
                )

    def _array(self, schema: Schema) -> Json:
        first = schema.get("prefixItems")
        items = [self.value(item) for item in first] if isinstance(first, list) else []
        least = _count(schema, "minItems", 0)
        wanted = min(max(1, least), _count(schema, "maxItems", max(1, least)))
        if schema.get("items") is False:
            return items
        outer = self._variant
        try:
            for index in range(len(items), wanted):
                self._variant = outer + index
                items.append(self.value(schema.get("items", {})))
        except _Endless:
            if len(items) < least:
                raise
        finally:
            self._variant = outer
        return items

    def _object(self, schema: Schema) -> Json:
        made: dict[str, Json] = {}
        required = _names(schema.get("required"))
        properties = schema.get("properties")
        for name, item in properties.items() if isinstance(properties, dict) else ():
            try:
                made[name] = self.value(item)
            except _Endless:
                if name in required:
                    raise
        others = schema.get("additionalProperties", {})
        missing = [name for name in required if name not in made]
        spare = _count(schema, "minProperties", 0) - len(made) - len(missing)
        for name in [*missing, *(f"key_{index}" for index in range(spare))]:
            made[name] = self.value(others)
        return made


def _target(root: Schema, ref: str) -> Json:
    """What a reference inside the schema points to; an unknown one accepts anything."""
    place: Json | Schema = root
    for part in ref.removeprefix("#").strip("/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if name:
            place = place.get(name) if isinstance(place, Mapping) else None
    return dict(place) if isinstance(place, Mapping) else {}


def _merged(*schemas: Json | Schema) -> dict[str, Json]:
    """One schema that asks what all of them ask, as far as they do not contradict each other."""
    made: dict[str, Json] = {}
    for schema in schemas:
        for key, item in schema.items() if isinstance(schema, Mapping) else ():
            known = made.get(key)
            if isinstance(known, dict) and isinstance(item, dict):
                made[key] = known | item
            elif (
                isinstance(known, list) and isinstance(item, list) and key in {"required", "allOf"}
            ):
                made[key] = known + item
            else:
                made[key] = item
    return made


def _without(schema: Schema, word: str) -> dict[str, Json]:
    return {key: item for key, item in schema.items() if key != word}


def _kind(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if isinstance(kind, str):
        return kind
    if "properties" in schema or "additionalProperties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _number(schema: Schema, variant: int, *, whole: bool) -> int | float:
    """The first of a few likely numbers that fits; 1 where nothing does."""
    unit = _real(schema, "multipleOf") or (1.0 if whole else 0.0)
    low = max(_real(schema, "minimum", -math.inf), _real(schema, "exclusiveMinimum", -math.inf))
    high = min(_real(schema, "maximum", math.inf), _real(schema, "exclusiveMaximum", math.inf))
    ends = [end for end in (low, high, (low + high) / 2) if math.isfinite(end)]
    likely = [1.0, *ends, 0.0, low + 1, high - 1]
    if unit:
        multiples = [math.floor(end / unit) * unit for end in [1.0, *ends]]
        likely += [near for m in multiples for near in (m, m + unit, m - unit)]
    fitting = [n for n in likely if _fits(n, schema, low, high, unit)]
    found = (fitting[0] if fitting else 1.0) + variant * (unit or 1.0)
    return int(found) if whole else found


def _fits(number: float, schema: Schema, low: float, high: float, unit: float) -> bool:
    return (
        math.isfinite(number)
        and low <= number <= high
        and number != schema.get("exclusiveMinimum")
        and number != schema.get("exclusiveMaximum")
        and (not unit or math.isclose(number / unit, round(number / unit), abs_tol=1e-9))
    )


def _string(schema: Schema, text: str) -> str:
    least = _count(schema, "minLength", 0)
    most = _count(schema, "maxLength", max(len(text), least))
    if isinstance(form := schema.get("format"), str) and form in _FORMATS:
        return _FORMATS[form]
    fitted = text.ljust(least, ".")[:most]
    if not isinstance(pattern := schema.get("pattern"), str):
        return fitted
    spellings = (fitted, *_SPELLINGS, *(letter * least for letter in "aA1"))
    return next((s for s in spellings if least <= len(s) <= most and _matches(pattern, s)), fitted)


def _matches(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False


def _count(schema: Schema, word: str, otherwise: int) -> int:
    value = schema.get(word)
    return int(value) if isinstance(value, int | float) else otherwise


def _real(schema: Schema, word: str, otherwise: float = 0.0) -> float:
    value = schema.get(word)
    return float(value) if isinstance(value, int | float) else otherwise


def _names(value: Json) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
