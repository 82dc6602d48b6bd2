"""What may be said to a question: a pure check, bounded whatever form and answer are like."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.control.inputs import Reply, answer_of
from posthouse.errors import InvalidAnswer
from posthouse.inputs.form import FormUnusable, check_form, problems
from posthouse.inputs.model import Decision, Kind, Request

QUESTION = Request(kind=Kind.QUESTION, question="Why?")
FORM = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
APPROVAL = Request(kind=Kind.APPROVAL, question="May it?", decisions=tuple(Decision), form=FORM)
BUDGET = Request(
    kind=Kind.BUDGET, question="More?", decisions=(Decision.APPROVE, Decision.REJECT), form=FORM
)


def reply(**said: Any) -> Reply:
    return Reply(**said, said=frozenset(said))


@pytest.mark.parametrize(
    ("request_", "given_"),
    [
        (QUESTION, reply(value="because")),
        (QUESTION, reply(decision=Decision.RESPOND, value="because", comment="so")),
        (QUESTION.model_copy(update={"form": FORM}), reply(value={"n": 1, "other": [1]})),
        (QUESTION.model_copy(update={"form": {"type": "null"}}), reply(value=None)),
        (APPROVAL, reply(decision=Decision.APPROVE)),
        (APPROVAL, reply(decision=Decision.EDIT, arguments={"n": 2})),
        (APPROVAL, reply(decision=Decision.REJECT, comment="no")),
        (APPROVAL, reply(decision=Decision.RESPOND, value="I did")),
        (BUDGET, reply(decision=Decision.APPROVE, value={"n": 5})),
        (BUDGET, reply(decision=Decision.REJECT)),
    ],
)
def test_what_fits_is_taken_as_it_is(request_: Request, given_: Reply) -> None:
    answer = answer_of(request_, given_)
    assert answer.decision == (given_.decision or Decision.RESPOND)
    said = (given_.value, given_.arguments, given_.comment)
    assert (answer.value, answer.arguments, answer.comment) == said


@pytest.mark.parametrize(
    ("request_", "given_", "location"),
    [
        (QUESTION, reply(), "value"),
        (QUESTION, reply(value=5), "value"),
        (QUESTION, reply(value=""), "value"),
        (QUESTION, reply(decision=Decision.APPROVE), "decision"),
        (APPROVAL, reply(), "decision"),
        (APPROVAL, reply(value="yes"), "decision"),
        (APPROVAL, reply(decision=Decision.APPROVE, arguments={"n": 2}), "arguments"),
        (APPROVAL, reply(decision=Decision.EDIT), "arguments"),
        (APPROVAL, reply(decision=Decision.EDIT, arguments={"n": "x"}), "arguments.n"),
        (APPROVAL, reply(decision=Decision.EDIT, arguments={}), "arguments.n"),
        (APPROVAL, reply(decision=Decision.REJECT, value="x"), "value"),
        (BUDGET, reply(decision=Decision.APPROVE), "value"),
        (BUDGET, reply(decision=Decision.EDIT, arguments={"n": 1}), "decision"),
    ],
)
def test_what_does_not_fit_says_where(request_: Request, given_: Reply, location: str) -> None:
    with pytest.raises(InvalidAnswer) as caught:
        answer_of(request_, given_)
    assert caught.value.errors[0]["location"] == location


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


TWICE = {"items": {"$ref": "#"}}


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 5000 + "!"),
        ({"patternProperties": {"^(a|a)*$": {"type": "null"}}}, {"a" * 5000 + "!": 1}),
        ({"uniqueItems": True}, [{} for _ in range(20_000)]),
        ({"anyOf": [TWICE, TWICE, {"type": "string"}]}, deep(60)),
        ({"$ref": "#"}, 1),
        ({"multipleOf": 1e-300}, 1e300),
        ({"enum": [deep(60)] * 100}, deep(60)),
        ({"type": "array", "items": {"type": "string"}}, list(range(100_000))),
    ],
)
def test_no_form_and_no_answer_take_for_ever(form: dict[str, Any], value: Any) -> None:
    with suppress(FormUnusable):
        assert len(problems(form, value, "value")) <= 21


@pytest.mark.parametrize(
    "form",
    [
        {"type": "colour"},
        {"properties": 5},
        {"maximum": 2**70},
        {"patternProperties": {"a": {}}, "unevaluatedProperties": False},
    ],
)
def test_a_form_that_cannot_be_checked_is_said_to_be_so(form: dict[str, Any]) -> None:
    with pytest.raises(FormUnusable):
        check_form(form)
    with pytest.raises(InvalidAnswer):
        answer_of(QUESTION.model_copy(update={"form": form}), reply(value=1))


@pytest.mark.parametrize(
    "form", [{"$ref": "http://nowhere.invalid/form"}, {"$ref": "#/no"}, {"pattern": "(?=a)b"}]
)
def test_what_is_not_in_the_form_itself_is_not_looked_for(form: dict[str, Any]) -> None:
    with pytest.raises(InvalidAnswer):
        answer_of(QUESTION.model_copy(update={"form": form}), reply(value="ab"))


WORDS = ["type", "properties", "items", "anyOf", "required", "pattern", "enum", "minimum", "$ref"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(WORDS), JSON, max_size=3), JSON)
def test_any_answer_to_any_form_is_taken_or_refused(form: dict[str, Any], value: Any) -> None:
    asked = QUESTION.model_copy(update={"form": form})
    with suppress(InvalidAnswer):
        assert answer_of(asked, reply(value=value)).value == value
