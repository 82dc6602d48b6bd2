"""Which model a request goes to: an agent's tier, the table of models, what the run itself asks for."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from posthouse.errors import ConfigurationError, Fatal, InvalidRequest, PosthouseError

MOST_MODELS = 8

_REFERENCE = re.compile(
    r"(?P<provider>[a-z0-9][a-z0-9_-]{0,31}):(?P<model>[A-Za-z0-9_.:/@+-]{1,128})"
)


class Tier(StrEnum):
    """How able a model an agent asks for."""

    FAST = "fast"
    SMART = "smart"


class Reason(StrEnum):
    """Why a request goes to a model.

    tier: it is the first of its tier; run_override: the run asked for it; cheaper: the budget runs out; fallback,
    breaker_open, rate_limited: the one before it failed, is not asked for a while, or has no room.
    """

    TIER = "tier"
    FALLBACK = "fallback"
    BREAKER_OPEN = "breaker_open"
    RATE_LIMITED = "rate_limited"
    CHEAPER = "cheaper"
    RUN_OVERRIDE = "run_override"


class SkipCandidate(PosthouseError):
    """Said of a model before it is asked: the next one of the route is to be asked instead."""


@dataclass(frozen=True)
class Reference:
    """A model at an endpoint, written `provider:model`; the model's name may hold further colons."""

    provider: str
    model: str

    @classmethod
    def of(cls, text: str) -> Self:
        """The reference that a text is. Raises ValueError with words for whoever wrote it."""
        found = _REFERENCE.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text.strip()[:80]!r} is no model; write it as 'provider:model'")
        return cls(found["provider"], found["model"])

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


@dataclass(frozen=True)
class Choice:
    """A model that a request may go to, and why to this one."""

    provider: str
    model: str
    tier: Tier
    reason: Reason

    def after(self, reason: Reason) -> Self:
        """The same model, asked because of what became of the one before it."""
        return replace(self, reason=reason)


@dataclass(frozen=True)
class Wanted:
    """What a request is for: the agent's tier, the run's own models by tier, whether the budget runs out."""

    tier: Tier = Tier.SMART
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cheaper: bool = False


@dataclass(frozen=True)
class Routes:
    """The table: each tier's models in the order in which they are asked."""

    smart: tuple[Reference, ...]
    fast: tuple[Reference, ...]

    def of(self, tier: Tier) -> tuple[Reference, ...]:
        """The models of a tier."""
        return self.smart if tier is Tier.SMART else self.fast

    def choices(self, wanted: Wanted) -> tuple[Choice, ...]:
        """Every model that may be asked, the first one first, none twice. Raises Fatal for a wrong `wanted.models`.

        With `cheaper` the fast tier's models come before the agent's own.
        """
        if not wanted.cheaper or wanted.tier is Tier.FAST:
            return self._of_tier(wanted, wanted.tier)
        fast = [one.after(Reason.CHEAPER) for one in self._of_tier(wanted, Tier.FAST)]
        known = {(one.provider, one.model) for one in fast}
        own = self._of_tier(wanted, wanted.tier)
        return (*fast, *(one for one in own if (one.provider, one.model) not in known))

    def _of_tier(self, wanted: Wanted, tier: Tier) -> tuple[Choice, ...]:
        asked = wanted.models.get(tier, ())
        reason = Reason.RUN_OVERRIDE if asked else Reason.TIER
        try:
            references = [Reference.of(text) for text in asked] or self.of(tier)
        except ValueError as error:
            raise Fatal(str(error)) from None
        return tuple(
            Choice(one.provider, one.model, tier, reason) for one in dict.fromkeys(references)
        )

    def holds(self, choice: Choice) -> bool:
        """Whether the table names the model, and not only a run."""
        return Reference(choice.provider, choice.model) in (*self.smart, *self.fast)

    @property
    def providers(self) -> frozenset[str]:
        """The endpoints that the table needs."""
        return frozenset(one.provider for one in (*self.smart, *self.fast))


def references_in(setting: str, text: str) -> tuple[Reference, ...]:
    """The models of a setting, separated by commas. Raises ConfigurationError, which names the setting."""
    try:
        found = tuple(dict.fromkeys(Reference.of(part) for part in text.split(",") if part.strip()))
    except ValueError as error:
        raise ConfigurationError(f"{setting}: {error}") from None
    if not found:
        raise ConfigurationError(f"{setting}: it names no model")
    return found


def routes_of(
    smart: Sequence[Reference], fast: Sequence[Reference], providers: Collection[str]
) -> Routes:
    """The table of two settings. Raises ConfigurationError when it needs an endpoint that there is not."""
    routes = Routes(tuple(smart), tuple(fast))
    for setting, references in (("POSTHOUSE_MODELS_SMART", smart), ("POSTHOUSE_MODELS_FAST", fast)):
        for one in references:
            if one.provider not in providers:
                raise ConfigurationError(f"{setting}: {_unknown(one, providers)}")
    return routes


def checked_models(
    models: Mapping[str, Sequence[str]], providers: Collection[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """A run's own models by tier, as they are stored. Raises InvalidRequest with words for the caller.

    Without `providers` any endpoint's name passes; a worker that does not know it fails the run.
    """
    checked: dict[str, tuple[str, ...]] = {}
    for tier, texts in models.items():
        place = f"models.{tier[:40]}"
        if tier not in tuple(Tier):
            raise _refused(place, "there is no such tier; there are fast and smart")
        if not 0 < len(texts) <= MOST_MODELS:
            raise _refused(place, f"a tier takes 1 to {MOST_MODELS} models")
        found = [_known(f"{place}.{number}", text, providers) for number, text in enumerate(texts)]
        checked[tier] = tuple(map(str, dict.fromkeys(found)))
    return checked


def _known(place: str, text: str, providers: Collection[str] | None) -> Reference:
    try:
        reference = Reference.of(text)
    except ValueError as error:
        raise _refused(place, str(error)) from None
    if providers is not None and reference.provider not in providers:
        raise _refused(place, _unknown(reference, providers))
    return reference


def _refused(location: str, message: str) -> InvalidRequest:
    error = {"location": location, "message": message}
    return InvalidRequest(f"{location}: {message}", errors=(error,))


def _unknown(reference: Reference, providers: Collection[str]) -> str:
    known = ", ".join(sorted(providers)) or "none"
    return f"there is no endpoint {reference.provider!r}; there is: {known}"
