import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from posthouse.budget.model import Budget, BudgetState, More, OnExceeded, words_for


def test_limits_are_stored_in_whole_numbers() -> None:
    assert Budget(usd=0.01, seconds=1.5, on_exceeded=OnExceeded.ASK).rows() == [
        ("limit_nano_usd", 10_000_000),
        ("limit_ms", 1500),
        ("on_exceeded", "ask"),
    ]
    assert Budget(tokens=5, model_calls=2, tool_calls=3).rows()[:3] == [
        ("limit_tokens", 5),
        ("limit_model_calls", 2),
        ("limit_tool_calls", 3),
    ]


def test_without_a_limit_there_is_no_budget() -> None:
    assert Budget().rows() == Budget(on_exceeded=OnExceeded.FAIL).rows() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"usd": 0},
        {"usd": -1},
        {"usd": "1"},
        {"usd": True},
        {"usd": float("nan")},
        {"usd": float("inf")},
        {"tokens": 0},
        {"tokens": 1.5},
        {"model_calls": "3"},
        {"seconds": 0},
        {"on_exceeded": "explode"},
        {"dollars": 1},
    ],
)
def test_what_is_no_limit_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate(wrong)


def test_more_is_added_by_the_names_of_the_limits() -> None:
    added = More.model_validate({"usd": 0.5, "tokens": 100, "seconds": 2})
    assert added.amounts() == {"nano_usd": 500_000_000, "tokens": 100, "ms": 2000}


AMOUNTS = st.dictionaries(st.sampled_from(["tokens", "nano_usd", "ms"]), st.integers(0, 10**15))


@given(AMOUNTS, AMOUNTS, AMOUNTS)
def test_what_is_left_is_never_below_zero(
    limits: dict[str, int], spent: dict[str, int], reserved: dict[str, int]
) -> None:
    state = BudgetState(limits, spent, reserved)
    assert set(state.left) == set(limits)
    for name, left in state.left.items():
        assert 0 <= left <= limits[name]
    assert state.percent >= 0


def test_every_limit_has_words() -> None:
    whats = ("tokens", "nano_usd", "model_calls", "tool_calls", "seconds", "price")
    assert len({words_for(what) for what in whats}) == len(whats)
    assert words_for("something new")
