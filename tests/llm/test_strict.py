from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from posthouse.llm.strict import is_strict


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Part(Closed):
    name: str = Field(description="What it is called.")
    kind: Literal["a", "b"]


class Whole(Closed):
    parts: list[Part] = Field(min_length=1)
    number: int | None
    ratio: float = Field(ge=0, le=1)


class Default(Closed):
    number: int = 1


class Open(BaseModel):
    number: int


class Free(Closed):
    anything: Any


class Mapped(Closed):
    names: dict[str, int]


class Pair(Closed):
    pair: tuple[int, str]


class Short(Closed):
    text: str = Field(max_length=3)


class Described(Closed):
    part: Part = Field(description="A reference that says more.")


def test_closed_models_without_defaults_are_strict() -> None:
    assert is_strict(Part.model_json_schema())
    assert is_strict(Whole.model_json_schema())


@pytest.mark.parametrize("model", [Default, Open, Free, Mapped, Pair, Short, Described])
def test_what_strict_mode_refuses_is_not(model: type[BaseModel]) -> None:
    assert not is_strict(model.model_json_schema())


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string"},
        {"type": "object"},
        {"type": "object", "additionalProperties": False, "anyOf": []},
        {"type": "object", "additionalProperties": False, "properties": {"a": True}},
        {"properties": {"a": {"type": "string"}}},
    ],
)
def test_what_is_no_closed_object_is_not(schema: dict[str, Any]) -> None:
    assert not is_strict(schema)


def test_strict_mode_takes_ten_objects_in_one_another() -> None:
    def nested(levels: int) -> dict[str, Any]:
        inside = {"a": nested(levels - 1)} if levels > 1 else {}
        required = list(inside)
        parts = {"properties": inside, "required": required}
        return {"type": "object", "additionalProperties": False, **parts}

    assert is_strict(nested(10))
    assert not is_strict(nested(11))
