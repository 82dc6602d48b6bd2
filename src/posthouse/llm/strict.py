"""Whether a JSON Schema follows OpenAI's rules for strict output; one that does not is sent as a wish."""

from typing import Any

# https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
_KEYWORDS = frozenset(
    {
        *("type", "title", "description", "enum", "const", "anyOf", "$ref", "$defs"),
        *("properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
        *("pattern", "format", "multipleOf", "minimum", "maximum"),
        *("exclusiveMinimum", "exclusiveMaximum"),
    }
)
_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)
_MOST_OBJECTS_DEEP = 10


def is_strict(schema: dict[str, Any]) -> bool:
    """Whether strict mode takes the schema: every object closed, every property required."""
    return "object" in _types(schema) and "anyOf" not in schema and _follows(schema, 1)


def _follows(node: object, depth: int) -> bool:
    if not isinstance(node, dict) or not node.keys() <= _KEYWORDS or depth > _MOST_OBJECTS_DEEP:
        return False
    if "$ref" in node:
        return len(node) == 1
    if not node.keys() & {"type", "enum", "const", "anyOf"}:
        return False
    if node.get("format", "date") not in _FORMATS or not _is_closed(node):
        return False
    deeper = depth + ("object" in _types(node))
    return all(_follows(child, deeper) for child in _children(node))


def _types(node: dict[str, Any]) -> list[Any]:
    kind = node.get("type")
    return kind if isinstance(kind, list) else [kind]


def _is_closed(node: dict[str, Any]) -> bool:
    if "object" not in _types(node):
        return "properties" not in node
    named = set(node.get("properties", ()))
    return node.get("additionalProperties") is False and set(node.get("required", ())) == named


def _children(node: dict[str, Any]) -> list[Any]:
    named = [*node.get("properties", {}).values(), *node.get("$defs", {}).values()]
    items = [node["items"]] if "items" in node else []
    return [*named, *node.get("anyOf", ()), *items]
