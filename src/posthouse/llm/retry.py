"""The one retry policy for model requests: only what passes by itself is tried again."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random,
)

from posthouse import clock
from posthouse.errors import EndpointDown, ModelUnavailable, RateLimited, RunCode
from posthouse.llm.guarded import Guarded, Ready
from posthouse.llm.messages import Completion, ModelRequest
from posthouse.llm.provider import ModelProvider

# A run looks at its own bound when it comes back.
LONGEST_WAIT = 60.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Retry:
    """A try that failed in a passing way, `attempt` from 1, and the wait before the next one."""

    code: RunCode
    attempt: int
    delay_ms: int


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently, in seconds; a longer wait than `patience` is for a run without a worker."""

    attempts: int = 3
    shortest: float = 2.0
    longest: float = 10.0
    patience: float = 2.0


class RetryingProvider:
    """Sends a request again after ModelUnavailable; every other error is raised at once."""

    def __init__(
        self,
        provider: ModelProvider | Guarded,
        policy: RetryPolicy | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = clock.sleep,
    ) -> None:
        self._provider = provider
        self._policy = policy or RetryPolicy()
        self._sleep = sleep

    async def complete(
        self,
        request: ModelRequest,
        on_text: Callable[[str], None],
        on_retry: Callable[[Retry], None],
        ready: Ready | None = None,
    ) -> Completion:
        """The whole answer. After `on_retry` the text so far is void and `on_text` begins anew.

        `ready` is called before each try. Raises ModelUnavailable (no try succeeded), ContentRefused, Fatal;
        EndpointDown or RateLimited when the endpoint is not to be asked for a while.
        """

        def announce(state: RetryCallState) -> None:
            retry = Retry(
                code=_failure(state).code,
                attempt=state.attempt_number,
                delay_ms=round(state.upcoming_sleep * 1000),
            )
            _log.warning("llm_retry", model=request.model, **vars(retry))
            on_retry(retry)

        policy = AsyncRetrying(
            sleep=self._sleep,
            stop=self._give_up,
            wait=self._delay,
            retry=retry_if_exception_type(ModelUnavailable),
            before_sleep=announce,
            reraise=True,
        )
        try:
            completion: Completion = await policy(self._ask, request, on_text, ready)
        except ModelUnavailable as error:
            asked = error.retry_after or 0.0
            if asked <= self._policy.patience:
                raise
            limited = error.code is RunCode.RATE_LIMIT
            wait = min(asked, LONGEST_WAIT) * random.Random().uniform(1.0, 1.1)
            raise (RateLimited if limited else EndpointDown)(wait) from error
        return completion

    async def _ask(
        self, request: ModelRequest, on_text: Callable[[str], None], ready: Ready | None
    ) -> Completion:
        if isinstance(self._provider, Guarded):
            return await self._provider.complete(request, on_text, ready)
        return await self._provider.complete(await ready(request) if ready else request, on_text)

    def _give_up(self, state: RetryCallState) -> bool:
        asked = _failure(state).retry_after or 0.0
        return asked > self._policy.patience or stop_after_attempt(self._policy.attempts)(state)

    def _delay(self, state: RetryCallState) -> float:
        asked = _failure(state).retry_after
        if not asked:  # nothing was said, or the moment is over: no reason to hurry
            return self._backoff(state)
        # Spread out, or all runs that were told the same moment come back in the same moment.
        return asked + wait_random(0, asked / 10)(state)

    def _backoff(self, state: RetryCallState) -> float:
        """From `shortest` on, each wait longer than the one before it, none above `longest`."""
        doubled = self._policy.shortest * 2 ** (state.attempt_number - 1)
        least = min(doubled, self._policy.longest / 2)
        return wait_random(least, 2 * least)(state)


def _failure(state: RetryCallState) -> ModelUnavailable:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, ModelUnavailable)
    return error
