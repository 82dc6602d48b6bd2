"""Answers of a form: what is wrong is said exactly, a bounded number of times."""

from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel

from posthouse.agents.decide import MAX_REPAIRS
from posthouse.agents.form import MAX_CHARACTERS, form_of, unwrapped
from posthouse.errors import Fatal, InvalidOutput, RunCode
from posthouse.testing.provider import call, call_tools, say

Bench = Any  # the fixture's class lives in conftest


class Stop(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    horses: int = Field(ge=0)


class Route(BaseModel):
    """A road."""

    stops: list[Stop]
    next: "Route | None" = None


class Numbers(RootModel[list[int]]):
    pass


class Wrapped(BaseModel):
    name: str = ""


STOP = '{"name": "Ulm", "horses": 4}'


@pytest.mark.parametrize(
    "text",
    [
        STOP,
        f"  {STOP}\n",
        f"```json\n{STOP}\n```",
        f"```\n{STOP}\n```\n",
        f"```{STOP}```",
        f"Here it is:\n\n```JSON\n{STOP}\n```\nI hope that it helps.",
        f"```json\n{STOP}",
    ],
)
def test_what_a_model_wraps_around_it_is_cut_off(text: str) -> None:
    assert form_of(Stop).read(text) == (STOP, "")


def test_a_fence_inside_the_object_stays() -> None:
    text = '{"name": "```json {} ```", "horses": 1}'
    assert form_of(Stop).read(text) == (text, "")
    assert form_of(Stop).read(f"```\n{text}\n```") == (text, "")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"horses": 1}', "name is missing"),
        ('{"name": "Ulm", "horses": -1}', "horses: input should be greater than or equal to 0"),
        ('{"name": "Ulm", "horses": 1, "x": 1}', "x does not belong there"),
        ("[]", "input should be an object"),
        ("Ulm has four.", "invalid JSON"),
        ('{"name": "Ulm"', "invalid JSON"),
        ("[" * 5000, "recursion limit"),
    ],
)
def test_what_is_wrong_is_said(text: str, wrong: str) -> None:
    kept, problem = form_of(Stop).read(text)
    assert kept == text
    assert wrong in problem
    assert "'Stop'" in problem


def test_only_the_first_five_things_are_said_and_shortly() -> None:
    stops = ",".join('{"horses": 1}' for _ in range(12))
    _, problem = form_of(Route).read(f'{{"stops": [{stops}]}}')
    assert problem.count("is missing") == 5
    assert "stops.0.name is missing" in problem
    assert "and 7 more" in problem
    _, problem = form_of(Stop).read(f'{{"{"x" * 100_000}": 1}}')
    assert len(problem) < 1500
    assert "name is missing" in problem


def test_a_shape_has_a_name_that_every_provider_takes() -> None:
    shape = form_of(Route).shape
    assert (shape.name, shape.parameters) == ("Route", Route.model_json_schema())
    odd = type("Größe[int]" * 20, (BaseModel,), {})
    assert form_of(odd).shape.name == ("Gr__e_int_" * 20)[:64]
    with pytest.raises(Fatal, match="no object"):
        form_of(Numbers)


def test_half_a_pair_of_surrogates_does_no_harm() -> None:
    text, problem = form_of(Wrapped).read('{"name": "\ud83d"}')
    assert (text, problem) == ('{"name": "?"}', "")


@given(st.text(alphabet=st.sampled_from('`{}"[] \n\tjson:,1')))
def test_no_text_breaks_it(text: str) -> None:
    kept, problem = form_of(Wrapped).read(text)
    if problem:
        assert kept == text
    else:
        Wrapped.model_validate_json(kept)
    assert unwrapped(unwrapped(text)) == unwrapped(text) or "`" in text


@pytest.mark.parametrize(
    "piece", ["[", "```", "{", '{"a":', "1,", '"\\', " ", "\n", "```{", "{```"]
)
@pytest.mark.parametrize("size", [MAX_CHARACTERS, 1_000_000])
def test_hostile_texts_are_read_in_a_moment(piece: str, size: int) -> None:
    inside = piece * (size // len(piece))
    for text in (inside, f'{{"stops": [{inside}]}}'[:size]):
        began = perf_counter()
        assert form_of(Route).read(text)[1]
        assert perf_counter() - began < 2  # far above what it takes, far below what a square would


async def test_the_model_is_told_the_form_and_its_answer_is_read(bench: Bench) -> None:
    answer = await bench.run(
        call_tools(call("look", "a")), say(f"```json\n{STOP}\n```"), output=Stop
    )
    assert (answer.text, answer.stopped) == (STOP, None)
    assert answer.read(Stop) == Stop(name="Ulm", horses=4)
    shapes = [request.shape for request in bench.provider.requests]
    assert [shape.name for shape in shapes] == ["Stop", "Stop"]
    assert shapes[0].parameters == Stop.model_json_schema()


async def test_what_is_wrong_with_the_form_is_repaired(bench: Bench) -> None:
    answer = await bench.run(say('{"name": "Ulm"}'), say(STOP), output=Stop)
    assert answer.read(Stop).horses == 4
    assert "horses is missing" in bench.provider.requests[1].messages[-1].text
    assert bench.steps.event_types.count("turn.started") == 2


async def test_a_form_that_is_never_met_is_an_invalid_output_with_its_text(bench: Bench) -> None:
    answer = await bench.run(*[say(f"No {n}.") for n in range(MAX_REPAIRS + 1)], output=Stop)
    assert (answer.text, answer.stopped) == (f"No {MAX_REPAIRS}.", RunCode.INVALID_OUTPUT)
    with pytest.raises(InvalidOutput):
        answer.read(Stop)


async def test_on_the_last_turn_too(bench: Bench) -> None:
    answer = await bench.run(
        call_tools(call("look", "a")), say(f"```\n{STOP}```"), output=Stop, max_iterations=2
    )
    assert (answer.text, answer.stopped) == (STOP, None)
    assert bench.provider.requests[1].shape is not None
    bench.steps.kept.journal.clear()
    answer = await bench.run(say("No."), output=Stop, max_iterations=1)
    assert (answer.text, answer.stopped) == ("No.", RunCode.MAX_ITERATIONS)


async def test_a_loop_may_end_in_the_form(bench: Bench) -> None:
    again = call_tools(call("look", "a"))
    answer = await bench.run(*[again] * 5, say(f"```\n{STOP}```"), output=Stop)
    assert (answer.text, answer.stopped) == (STOP, RunCode.LOOP_DETECTED)


async def test_the_digest_covers_the_form_only_where_there_is_one(bench: Bench) -> None:
    await bench.run(say(STOP), output=Stop)
    with_form = bench.steps.kept.journal["scout/turn:1"].digest
    bench.reopen()
    with pytest.raises(AssertionError, match="something else before"):
        await bench.run(say(STOP))
    bench.steps.kept.journal.clear()
    await bench.run(say(STOP))
    without = bench.steps.kept.journal["scout/turn:1"].digest
    assert without != with_form
    # Journals that were written before there were forms must go on.
    assert without == "ef7a05d061b673f3"
