import json
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from posthouse.embedded.standin.sample import Json, sample


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Node(BaseModel):
    """A tree: it must end somewhere."""

    name: str
    children: list["Node"]
    parent: Optional["Node"] = None


class Forest(BaseModel):
    trees: Annotated[list[Node], Field(min_length=2, max_length=3)]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=3, lt=10)]


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: Annotated[float, Field(gt=0, lt=0.5)]


class Strict(BaseModel, extra="forbid"):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    colour: Colour
    when: datetime
    day: date
    id: UUID
    slug: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=12)]
    code: Annotated[str, Field(pattern=r"^\d{3}$")]
    short: Annotated[str, Field(max_length=3)]
    long: Annotated[str, Field(min_length=50)]
    few: Annotated[set[int], Field(min_length=3)]
    pair: tuple[int, str]
    even: Annotated[int, Field(multiple_of=2, ge=7)]
    tenth: Annotated[float, Field(multiple_of=0.1, le=-3)]
    counts: Annotated[dict[str, int], Field(min_length=2)]
    nothing: None
    maybe: int | None
    anything: Any
    with_default: list[str] = []


@pytest.mark.parametrize(
    "kind",
    [
        Node,
        Forest,
        Cat,
        Dog,
        Strict,
        list[Node],
        dict[str, Cat],
        Colour,
        int,
        str,
        bool,
        set[Colour],
    ],
)
def test_what_is_made_from_a_schema_fits_it(kind: Any) -> None:
    adapter = TypeAdapter(kind)
    made = sample(adapter.json_schema())
    adapter.validate_json(json.dumps(made))
    assert sample(adapter.json_schema()) == made


def test_a_schema_of_nothing_is_no_error() -> None:
    endless: dict[str, Json] = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert sample({}) == "stand-in"
    assert sample(endless) is None
    assert sample({"type": "object"}) == {}


def test_all_of_asks_for_everything() -> None:
    parts: list[Json] = [
        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
        {"properties": {"b": {"enum": ["x"]}}, "required": ["b"]},
    ]
    assert sample({"allOf": parts}) == {"a": 1, "b": "x"}
