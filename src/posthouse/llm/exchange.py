"""A request and its answer, in time; what goes wrong is logged, and classified for everybody else."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from posthouse import clock
from posthouse.errors import RunFailed
from posthouse.llm import classify
from posthouse.llm.answer import PartialAnswer
from posthouse.llm.messages import Completion, ModelRequest

# What a server garbles shows where it is used.
GARBLED = (ValueError, TypeError, AttributeError, RecursionError)

_LOGGED_CHARACTERS = 2000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Failures:
    """The errors of an SDK: which there are, what each means, what the log may say of it."""

    kinds: tuple[type[Exception], ...]
    classified: Callable[[Exception], RunFailed]
    detail: Callable[[Exception], str]


async def completed(
    request: ModelRequest, answer: Awaitable[PartialAnswer], failures: Failures
) -> Completion:
    """The whole answer. Raises ModelUnavailable, also when the request's time is up, or what a failure means."""
    started = clock.monotonic()
    try:
        async with asyncio.timeout(request.timeout_seconds):
            partial = await answer
        return partial.completion(request.model, round((clock.monotonic() - started) * 1000))
    except TimeoutError:
        raise classify.timed_out() from None
    except failures.kinds as error:
        _log.warning(
            "llm_error",
            model=request.model,
            error=type(error).__name__,
            status=getattr(error, "status_code", None),
            request=getattr(error, "request_id", None),
            detail=failures.detail(error)[:_LOGGED_CHARACTERS],
        )
        # Not chained: whoever prints the error must not print the provider's words.
        raise failures.classified(error) from None
