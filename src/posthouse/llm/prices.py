"""What tokens cost: the operator's prices first, then those that are known of the models; integers in nano-USD."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from posthouse.errors import ConfigurationError
from posthouse.llm.router import Reference

SETTING = "POSTHOUSE_PRICES"
_NANO = 10**9
_MILLION = 10**6

Lookup: TypeAlias = Callable[[str, str], "Tariff | None"]


@dataclass(frozen=True)
class Price:
    """Nano-USD for one token, exactly."""

    input_nano: Fraction
    output_nano: Fraction

    def of(self, input_tokens: int, output_tokens: int) -> int:
        """What so many tokens cost, in nano-USD, rounded up once."""
        return ceil(self.input_nano * input_tokens + self.output_nano * output_tokens)


class PriceSetting(BaseModel):
    """USD for a million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal = Field(ge=0, le=10**6, allow_inf_nan=False)
    output: Decimal = Field(ge=0, le=10**6, allow_inf_nan=False)


_SETTINGS = TypeAdapter(dict[str, PriceSetting])


@dataclass(frozen=True)
class Tariff:
    """The prices of a model by what one request reads: from so many tokens on, ascending, this price for all."""

    tiers: tuple[tuple[int, Price], ...]

    def at(self, input_tokens: int) -> Price:
        """The price of a request that reads so many tokens."""
        return [price for start, price in self.tiers if start <= input_tokens or start == 0][-1]


class Prices:
    """Prices by provider and model; one that nobody knows is None, never 0."""

    def __init__(self, own: Mapping[Reference, Price] | None = None) -> None:
        self._own = dict(own or {})
        self._known: Lookup = lru_cache(maxsize=1024)(_looked_up)

    def price(self, provider: str, model: str, input_tokens: int = 0) -> Price | None:
        """The price of a token of the model at the endpoint, in a request that reads so many.

        Known are the models of an endpoint that bears its vendor's name; of any other, what the operator says.
        """
        own = self._own.get(Reference(provider, model))
        if own is not None:
            return own
        tariff = self._known(provider, model)
        return None if tariff is None else tariff.at(input_tokens)

    def cost(self, provider: str, model: str, input_tokens: int, output_tokens: int) -> int | None:
        """What one request's tokens cost, in nano-USD; None when the price is not known."""
        price = self.price(provider, model, input_tokens)
        return None if price is None else price.of(input_tokens, output_tokens)


def prices_of(text: str) -> Prices:
    """The prices of the setting, and behind them the known ones. Raises ConfigurationError."""
    if not text.strip():
        return Prices()
    try:
        listed = _SETTINGS.validate_json(text)
        own = {Reference.of(name): _price(one.input, one.output) for name, one in listed.items()}
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"{SETTING}: {where + ': ' if where else ''}{first['msg']}"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"{SETTING}: {error}") from None
    return Prices(own)


def _price(per_million_in: Decimal, per_million_out: Decimal) -> Price:
    return Price(*(Fraction(usd) * _NANO / _MILLION for usd in (per_million_in, per_million_out)))


def _looked_up(provider: str, model: str) -> Tariff | None:
    # Here and not above, as its table costs a sixth of a second, which nobody pays who asks no model.
    from genai_prices import Usage, calc_price

    try:
        found = calc_price(Usage(input_tokens=1), model, provider_id=provider).model_price
    except LookupError:
        return None
    read, written = (_steps(getattr(found, f"{way}_mtok", None)) for way in ("input", "output"))
    if not read or not written:
        return None
    starts = sorted({*read, *written})
    return Tariff(tuple((start, _price(_at(read, start), _at(written, start))) for start in starts))


def _steps(price: object) -> dict[int, Decimal]:
    """USD for a million tokens, by the number of tokens read from which on it holds."""
    if isinstance(price, Decimal):
        return {0: price}
    tiers = getattr(price, "tiers", ())
    steps = {0: getattr(price, "base", None), **{tier.start: tier.price for tier in tiers}}
    return {start: usd for start, usd in steps.items() if isinstance(usd, Decimal)}


def _at(steps: Mapping[int, Decimal], start: int) -> Decimal:
    return steps[max((step for step in steps if step <= start), default=min(steps))]
