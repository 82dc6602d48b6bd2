"""Which models may be asked, in which order and why; and what a run or an operator may name."""

import pytest

from posthouse.errors import ConfigurationError, Fatal, InvalidRequest
from posthouse.llm.router import (
    Choice,
    Reason,
    Reference,
    Routes,
    Tier,
    Wanted,
    checked_models,
    references_in,
    routes_of,
)

BIG, OTHER, SMALL = (Reference.of(text) for text in ("a:big", "b:other", "a:small:8b"))
ROUTES = Routes(smart=(BIG, OTHER), fast=(SMALL, OTHER))


def told(wanted: Wanted) -> list[tuple[str, str, str]]:
    return [(f"{c.provider}:{c.model}", c.tier, c.reason) for c in ROUTES.choices(wanted)]


def test_a_tier_has_its_models_in_their_order() -> None:
    assert told(Wanted()) == [("a:big", "smart", "tier"), ("b:other", "smart", "tier")]
    assert told(Wanted(Tier.FAST))[0] == ("a:small:8b", "fast", "tier")


def test_a_run_names_its_own_models_by_tier() -> None:
    wanted = Wanted(models={"smart": ("c:new", "a:big", "c:new")})
    assert told(wanted) == [("c:new", "smart", "run_override"), ("a:big", "smart", "run_override")]
    assert told(Wanted(Tier.FAST, wanted.models))[0][2] == "tier"


def test_a_budget_that_runs_out_asks_the_fast_tier_first() -> None:
    assert told(Wanted(cheaper=True)) == [
        ("a:small:8b", "fast", "cheaper"),
        ("b:other", "fast", "cheaper"),
        ("a:big", "smart", "tier"),
    ]
    assert told(Wanted(Tier.FAST, cheaper=True)) == told(Wanted(Tier.FAST))


def test_a_choice_says_what_became_of_the_one_before() -> None:
    choice = Choice("a", "big", Tier.SMART, Reason.TIER)
    assert choice.after(Reason.BREAKER_OPEN) == Choice("a", "big", Tier.SMART, Reason.BREAKER_OPEN)


def test_a_stored_model_that_is_none_is_fatal() -> None:
    with pytest.raises(Fatal, match="'big' is no model; write it as 'provider:model'"):
        ROUTES.choices(Wanted(models={"smart": ("big",)}))


def test_a_setting_names_models() -> None:
    assert references_in("X", " a:big, a:small:8b,a:big ") == (BIG, SMALL)
    for text, line in (
        ("big", "X: 'big' is no model; write it as 'provider:model'"),
        (" , ", "X: it names no model"),
    ):
        with pytest.raises(ConfigurationError) as raised:
            references_in("X", text)
        assert str(raised.value) == line


def test_a_table_needs_its_endpoints() -> None:
    assert routes_of((BIG,), (SMALL,), {"a"}) == Routes((BIG,), (SMALL,))
    line = "POSTHOUSE_MODELS_FAST: there is no endpoint 'b'; there is: a"
    with pytest.raises(ConfigurationError) as raised:
        routes_of((BIG,), (OTHER,), {"a"})
    assert str(raised.value) == line


def test_models_of_a_request_are_checked() -> None:
    assert checked_models({"smart": ["a:big", "a:big"], "fast": ["b:x"]}) == {
        "smart": ("a:big",),
        "fast": ("b:x",),
    }
    assert checked_models({}) == {}


@pytest.mark.parametrize(
    ("models", "line"),
    [
        ({"large": ["a:big"]}, "models.large: there is no such tier; there are fast and smart"),
        ({"smart": []}, "models.smart: a tier takes 1 to 8 models"),
        ({"smart": ["a:m"] * 9}, "models.smart: a tier takes 1 to 8 models"),
        ({"smart": ["big"]}, "models.smart.0: 'big' is no model; write it as 'provider:model'"),
        (
            {"fast": ["a:m", "c:m"]},
            "models.fast.1: there is no endpoint 'c'; there is: a, b",
        ),
    ],
)
def test_a_wrong_model_of_a_request_is_said(models: dict[str, list[str]], line: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        checked_models(models, {"a", "b"})
    assert str(raised.value) == line
    [error] = raised.value.errors
    assert f"{error['location']}: {error['message']}" == line
