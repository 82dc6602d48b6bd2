"""A model provider behind its endpoint's breaker and rate: who is dead or has no room is not asked by everybody."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import structlog

from posthouse import ids
from posthouse.errors import (
    EndpointDown,
    ModelUnavailable,
    RateLimited,
    RunCode,
    RunFailed,
    StorageUnavailable,
)
from posthouse.llm.breaker import Admission, Breaker, Endpoint, Gate, Sign, Standing
from posthouse.llm.messages import Completion, ModelRequest
from posthouse.llm.pace import Permit
from posthouse.llm.provider import ModelProvider
from posthouse.llm.rate import Rate
from posthouse.telemetry import Metrics

T = TypeVar("T")
# Called when nothing stands in the way any more; what it returns is what is sent.
Ready: TypeAlias = Callable[[ModelRequest], Awaitable[ModelRequest]]

SHORTEST_WAIT = 0.2
_DEAD = frozenset({RunCode.CONNECTION, RunCode.SERVER_ERROR, RunCode.TIMEOUT})

_log = structlog.get_logger(__name__)


class Guarded:
    """Passes requests on while breaker and rate let them through; goes around each single try, inside the retries.

    While Redis is away everything is let through and nothing is reported.
    """

    def __init__(
        self,
        provider: ModelProvider,
        breaker: Breaker,
        endpoint: Endpoint,
        metrics: Metrics,
        *,
        rate: Rate | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self._provider = provider
        self._breaker = breaker
        self._endpoint = endpoint
        self._metrics = metrics
        self._rate = rate
        self._jitter = jitter or random.Random()
        self._asking: set[asyncio.Task[Any]] = set()

    async def complete(
        self, request: ModelRequest, on_text: Callable[[str], None], ready: Ready | None = None
    ) -> Completion:
        """As the provider's own. `ready` is called just before the request is sent, and may refuse by raising.

        Raises EndpointDown besides, without a request, while the breaker is open; RateLimited while there is no
        room, or when the endpoint says so.
        """
        token = ids.new_token()
        admission = await self._admission(token)
        if admission.gate is Gate.OPEN:
            raise EndpointDown(self._wait(admission.wait_seconds))
        probe = admission.gate is Gate.PROBE
        try:
            permit = await self._permit(request)
            request = await self._readied(request, permit, ready)
        except BaseException:
            self._drop(token, probe)
            raise
        try:
            completion = await self._provider.complete(request, on_text)
        except RunFailed as error:
            sign = _sign_of(error)
            standing = await self._finished(self._report(token, sign, probe))
            if probe and sign is Sign.FAILED and standing is not None:
                # It was let through to find out; had it been the run's last try, that would end the run.
                raise EndpointDown(self._wait(standing.wait_seconds)) from error
            if (closed := await self._closed(request, permit, error)) is not None:
                raise RateLimited(self._wait(closed)) from error
            raise
        except BaseException:
            self._drop(token, probe)
            raise
        await self._finished(self._answered(token, probe, request.model, permit, completion))
        return completion

    async def _permit(self, request: ModelRequest) -> Permit:
        if self._rate is None:
            return Permit()
        permit = await self._finished(self._rate.enter(request))
        if permit.wait_seconds:
            # Those that wait for room are in a line already.
            raise RateLimited(self._wait(permit.wait_seconds, 0.5 if permit.refused else 0.1))
        return permit

    async def _readied(
        self, request: ModelRequest, permit: Permit, ready: Ready | None
    ) -> ModelRequest:
        if ready is None:
            return request
        try:
            return await ready(request)
        except BaseException:
            if self._rate is not None:
                self._begun(self._rate.unused(request.model, permit))
            raise

    async def _answered(
        self, token: str, probe: bool, model: str, permit: Permit, completion: Completion
    ) -> None:
        if self._rate is not None:
            await self._rate.answered(model, permit, completion)
        await self._report(token, Sign.ALIVE, probe)

    async def _closed(
        self, request: ModelRequest, permit: Permit, error: RunFailed
    ) -> float | None:
        """Seconds that the endpoint's refusal keeps everybody out, None when it is none or Redis is away."""
        if self._rate is None or not isinstance(error, ModelUnavailable):
            return None
        if error.code is not RunCode.RATE_LIMIT:
            return None
        return await self._finished(self._rate.limited(request.model, permit, error))

    def _drop(self, token: str, probe: bool) -> None:
        if probe:
            # Whoever cancels does not wait for it.
            self._begun(self._report(token, Sign.DROPPED, True))

    async def _admission(self, token: str) -> Admission:
        asked = self._begun(self._admitted(token))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(lambda _: self._unused(token, asked))
            raise

    def _unused(self, token: str, asked: asyncio.Task[Admission]) -> None:
        # A probe that nobody makes must not keep the others waiting.
        if not asked.cancelled() and not asked.exception() and asked.result().gate is Gate.PROBE:
            self._begun(self._report(token, Sign.DROPPED, True))

    async def _admitted(self, token: str) -> Admission:
        try:
            return await self._breaker.admit(self._endpoint, token)
        except StorageUnavailable:
            return Admission(Gate.CLOSED, 0.0)

    async def _report(self, token: str, sign: Sign, probe: bool) -> Standing | None:
        try:
            standing = await self._breaker.report(self._endpoint, token, sign, probe=probe)
        except StorageUnavailable:
            return None
        if standing.turned:
            self._tell(standing)
        return standing

    def _tell(self, standing: Standing) -> None:
        if standing.open:
            self._metrics.breaker_opened()
            _log.warning(
                "breaker_opened", endpoint=self._endpoint.host, wait_seconds=standing.wait_seconds
            )
        else:
            _log.info("breaker_closed", endpoint=self._endpoint.host)

    def _wait(self, seconds: float, spread: float = 0.5) -> float:
        # Spread out, or all runs that wait for this endpoint come back in the same moment.
        return max(SHORTEST_WAIT, seconds + self._jitter.uniform(0.0, seconds * spread))

    async def _finished(self, call: Coroutine[Any, Any, T]) -> T:
        # A cancellation must not meet the client for Redis in the middle of a call.
        return await asyncio.shield(self._begun(call))

    def _begun(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(call)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task


def _sign_of(error: RunFailed) -> Sign:
    dead = isinstance(error, ModelUnavailable) and error.code in _DEAD
    return Sign.FAILED if dead else Sign.ALIVE
