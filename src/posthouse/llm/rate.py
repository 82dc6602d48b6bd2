"""One endpoint's rate as a process sees it: asks the fleet's count, learns from answers, asks no more than it must."""

from collections.abc import Callable, Mapping

import structlog

from posthouse import clock
from posthouse.errors import ModelUnavailable, StorageUnavailable
from posthouse.llm.breaker import Endpoint
from posthouse.llm.estimate import expected_tokens
from posthouse.llm.limits import Told, told_by
from posthouse.llm.messages import Completion, ModelRequest
from posthouse.llm.pace import Closure, Lane, Limits, Outcome, Pace, Permit, Report

# For so long an endpoint of which nobody knows a limit is not asked about again.
FREE_SECONDS = 0.5
# A Retry-After that is none: what is used up now may be there again in a moment.
_LONGEST_RESET = 60.0

_log = structlog.get_logger(__name__)


class Rate:
    """Says when a request may go, and tells the fleet what its answer said. While Redis is away all may go."""

    def __init__(
        self,
        pace: Pace,
        endpoint: Endpoint,
        limits: Limits | None = None,
        *,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        self._pace = pace
        self._endpoint = endpoint
        self._limits = limits or Limits()
        self._now = now
        self._heard: dict[str, Told] = {}
        self._free_until: dict[str, float] = {}

    def hear(self, model: str, headers: Mapping[str, str]) -> None:
        """Takes in the headers of an answer; what they say goes on with the next report."""
        told = told_by(headers, clock.wall_ms())
        if told is not None:
            self._heard[model] = told

    async def enter(self, request: ModelRequest) -> Permit:
        """Whether the request may go now, and how it was counted."""
        model = request.model
        if self._free_until.get(model, 0.0) > self._now():
            return Permit()
        try:
            permit = await self._pace.take(self._lane(model), expected_tokens(request))
        except StorageUnavailable:
            return Permit()
        if not permit.wait_seconds and not permit.slot and not permit.refused:
            self._free_until[model] = self._now() + FREE_SECONDS
        return permit

    async def answered(self, model: str, permit: Permit, completion: Completion) -> None:
        """The request of the permit was answered."""
        told, tokens = self._heard.pop(model, None), completion.tokens
        more = tokens.input + tokens.output - permit.tokens if permit.slot and tokens else 0
        if permit.slot or permit.refused or told:
            await self._tell(model, permit, Report(Outcome.ALIVE, tokens=more, told=told))

    async def unused(self, model: str, permit: Permit) -> None:
        """The request of the permit was not made."""
        if permit.slot:
            await self._tell(model, permit, Report(Outcome.NONE, -1, -permit.tokens))

    async def limited(self, model: str, permit: Permit, error: ModelUnavailable) -> float | None:
        """The request was refused for its rate: seconds in which nobody may ask; None while Redis is away."""
        told = self._heard.pop(model, None)
        wait = error.retry_after
        if wait is None and told is not None and told.reset is not None:
            wait = min(told.reset, _LONGEST_RESET)
        report = Report(Outcome.LIMITED, tokens=-permit.tokens, retry_after=wait, told=told)
        closure = await self._tell(model, permit, report)
        if closure is None:
            return None
        if closure.turned:
            _log.warning(
                "endpoint_limited",
                endpoint=self._endpoint.host,
                model=model,
                wait_seconds=closure.wait_seconds,
            )
        return closure.wait_seconds

    async def _tell(self, model: str, permit: Permit, report: Report) -> Closure | None:
        if report.outcome is Outcome.LIMITED or report.told:
            self._free_until.pop(model, None)
        try:
            return await self._pace.tell(self._lane(model), permit, report)
        except StorageUnavailable:
            return None

    def _lane(self, model: str) -> Lane:
        return Lane(self._endpoint.digest, model, self._limits)
