import subprocess
import sys

import pytest

from posthouse.errors import ConfigurationError
from posthouse.llm.prices import Prices, prices_of

OWN = '{"local:m:8b": {"input": 0.15, "output": "0.6"}, "openai:gpt-4o": {"input": 1, "output": 1}}'


def test_known_models_have_prices() -> None:
    prices = Prices()
    assert prices.cost("openai", "gpt-4o", 1000, 100) == 3_500_000
    assert prices.cost("openai", "gpt-4o-2024-08-06", 0, 0) == 0
    assert prices.cost("anthropic", "claude-sonnet-4-5", 1000, 100) == 4_500_000


def test_a_price_that_depends_on_what_is_read_is_that_of_the_request() -> None:
    prices = Prices()
    short = prices.price("anthropic", "claude-sonnet-4-5", 1000)
    long = prices.price("anthropic", "claude-sonnet-4-5", 900_000)
    assert short is not None
    assert long is not None
    assert long.input_nano > short.input_nano


@pytest.mark.parametrize(
    ("provider", "model"),
    [("openai", "stand-in"), ("local", "gpt-4o"), ("openai", ""), ("", "")],
)
def test_an_unknown_price_is_unknown_and_not_nothing(provider: str, model: str) -> None:
    assert Prices().cost(provider, model, 1000, 1000) is None


def test_the_operators_prices_come_first() -> None:
    prices = prices_of(OWN)
    assert prices.cost("local", "m:8b", 1, 1) == 750
    assert prices.cost("openai", "gpt-4o", 1000, 0) == 1_000_000
    assert prices.cost("openai", "gpt-4o-mini", 1000, 0) == 150_000


def test_part_of_a_nano_is_rounded_up_once() -> None:
    prices = prices_of('{"l:m": {"input": 0.0001, "output": 0.0001}}')
    assert prices.cost("l", "m", 1, 0) == 1
    assert prices.cost("l", "m", 25, 25) == 5


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"m": {"input": 1, "output": 1}}', "'m' is no model; write it as 'provider:model'"),
        ('{"a:m": {"input": 1}}', "a:m.output: Field required"),
        ('{"a:m": {"input": -1, "output": 1}}', "a:m.input: Input should be greater"),
    ],
)
def test_wrong_prices_are_one_line(text: str, line: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        prices_of(text)
    assert str(raised.value).startswith("POSTHOUSE_PRICES: ")
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_table_is_loaded_only_when_it_is_asked() -> None:
    code = "import sys, posthouse.llm.prices as p; p.prices_of(''); print('genai_prices' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"
