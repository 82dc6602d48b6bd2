"""Error answers of providers, of which no more is read than an error can be."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2

# What stands behind this explains nothing.
_MOST_ERROR_BYTES = 64 * 1024


async def bound_error(response: httpx2.Response) -> None:
    """Lets the SDK read no more of an error's body than an error can be."""
    if response.is_error:
        response.headers.pop("content-encoding", None)
        response.stream = _BoundStream(response.stream)


class _BoundStream(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _MOST_ERROR_BYTES
        async for part in self._stream:
            yield part[:left]
            left -= len(part)
            if left <= 0:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()
