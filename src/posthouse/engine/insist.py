"""Calls that must get through: while Redis is away, a worker waits and goes on."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from posthouse import clock
from posthouse.errors import StorageUnavailable

T = TypeVar("T")

FIRST_PAUSE = 0.05


async def insist(call: Callable[[], Awaitable[T]], *, longest: float = 1.0) -> T:
    """The call's answer, however long Redis is away; `longest` is the longest pause between tries, in seconds.

    Only for calls that may be repeated.
    """
    try:
        return await call()
    except StorageUnavailable:
        # Below, what is rare: the policy costs more than the call.
        await clock.sleep(FIRST_PAUSE)
    policy = AsyncRetrying(
        retry=retry_if_exception_type(StorageUnavailable),
        wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=longest),
        sleep=clock.sleep,
        reraise=True,
    )
    async for attempt in policy:
        with attempt:
            return await call()
    raise AssertionError("the policy never gives up")
