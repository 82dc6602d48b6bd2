"""Asks the models of a route one after another, until one answers."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from posthouse import clock
from posthouse.errors import EndpointDown, Fatal, ModelUnavailable, RateLimited, RunCode
from posthouse.llm.messages import Completion, ModelRequest
from posthouse.llm.retry import Retry, RetryingProvider, RetryPolicy
from posthouse.llm.router import Choice, Reason, Reference, Routes, SkipCandidate, Wanted

Prepare: TypeAlias = Callable[[Choice, ModelRequest], Awaitable[ModelRequest]]


@dataclass(frozen=True)
class Hooks:
    """What a request tells its maker.

    `prepare` is called when a model is free to be asked and returns what is sent to it; it refuses by raising, and
    SkipCandidate makes it the next model's turn. `on_routed` follows: the request goes there, and what text there
    was before is void.
    """

    on_text: Callable[[str], None]
    on_retry: Callable[[Retry], None]
    on_routed: Callable[[Choice], None]
    prepare: Prepare | None = None


class Routed:
    """Every model of a process, by its endpoint's name."""

    def __init__(
        self,
        providers: Mapping[str, RetryingProvider],
        routes: Routes,
        policy: RetryPolicy | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = clock.sleep,
    ) -> None:
        self._providers = providers
        self._routes = routes
        self._policy = policy or RetryPolicy()
        self._sleep = sleep

    def choices(self, wanted: Wanted) -> tuple[Choice, ...]:
        """The models that may be asked, in their order. Raises Fatal for a run's own model that is nowhere."""
        choices = self._routes.choices(wanted)
        for choice in choices:
            if choice.provider not in self._providers:
                raise Fatal(
                    f"the run asks for a model at {choice.provider!r}, which is no endpoint"
                )
        return choices

    def label(self, choice: Choice) -> str:
        """A name for metrics: the model's own, or `other` for one that only a run asked for."""
        return choice.model if self._routes.holds(choice) else "other"

    async def complete(self, request: ModelRequest, wanted: Wanted, hooks: Hooks) -> Completion:
        """The whole answer of the first model that gives one; the request's own model does not count.

        Raises EndpointDown or RateLimited when one may be asked later, else the first model's ModelUnavailable;
        ContentRefused and Fatal at once; SkipCandidate when `prepare` let none pass.
        """
        choices, attempt = self.choices(wanted), 1
        while True:
            try:
                return await self._round(choices, request, hooks)
            except RateLimited as limited:
                wait = limited.wait_seconds
                if wait > self._policy.patience or attempt >= self._policy.attempts:
                    raise
                if isinstance(limited.__cause__, ModelUnavailable):
                    hooks.on_retry(Retry(RunCode.RATE_LIMIT, attempt, round(wait * 1000)))
            attempt += 1
            await self._sleep(wait)

    async def _round(
        self, choices: Sequence[Choice], request: ModelRequest, hooks: Hooks
    ) -> Completion:
        waits: list[EndpointDown] = []
        failures: list[ModelUnavailable] = []
        skips: list[SkipCandidate] = []
        reason: Reason | None = None
        for choice in choices:
            try:
                return await self._ask(choice.after(reason) if reason else choice, request, hooks)
            except EndpointDown as down:
                waits.append(down)
                limited = isinstance(down, RateLimited)
                reason = Reason.RATE_LIMITED if limited else Reason.BREAKER_OPEN
            except ModelUnavailable as error:
                failures.append(error)
                reason = Reason.FALLBACK
            except SkipCandidate as skipped:
                skips.append(skipped)
                reason = reason or Reason.FALLBACK
        if waits:
            raise min(waits, key=lambda down: down.wait_seconds)
        raise [*failures, *skips][0]

    async def _ask(self, choice: Choice, request: ModelRequest, hooks: Hooks) -> Completion:
        prepared: ModelRequest | None = None

        async def ready(asked: ModelRequest) -> ModelRequest:
            nonlocal prepared
            if prepared is None:
                prepared = await hooks.prepare(choice, asked) if hooks.prepare else asked
                hooks.on_routed(choice)
            return prepared

        asked = request.model_copy(update={"model": choice.model})
        provider = self._providers[choice.provider]
        completion = await provider.complete(asked, hooks.on_text, hooks.on_retry, ready)
        return completion.model_copy(update={"provider": choice.provider})


def one_model(provider: RetryingProvider, model: str, name: str = "openai") -> Routed:
    """A table with one model at one endpoint, for both tiers."""
    only = (Reference(name, model),)
    return Routed({name: provider}, Routes(only, only))
