"""Each way in which Redis can be away is one error with a name for it; faults of ours are not among them."""

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    DataError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

from posthouse.errors import ConfigurationError, StorageUnavailable
from posthouse.storage.connect import available, connect


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (ConnectionError("gone"), "does not answer"),
        (TimeoutError("slow"), "does not answer"),
        (BusyLoadingError("loading"), "does not answer"),
        (OSError(111, "refused"), "does not answer"),
        (
            RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed"),
            "does not answer",
        ),
        (OutOfMemoryError("x"), "is full"),
        (ResponseError("OOM command not allowed when used memory > 'maxmemory'."), "is full"),
        (ReadOnlyError("x"), "is read-only"),
        (ResponseError("BUSY Redis is busy running a script"), "cannot serve"),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), "cannot serve"),
        (AuthenticationError("x"), "credentials"),
    ],
)
def test_redis_that_cannot_serve_is_unavailable(error: Exception, meaning: str) -> None:
    with pytest.raises(StorageUnavailable, match=meaning), available():
        raise error


@pytest.mark.parametrize(
    "error",
    [DataError("a float"), ResponseError("WRONGTYPE"), RuntimeError("a fault"), ValueError()],
)
def test_a_fault_of_ours_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)), available():
        raise error


@pytest.mark.parametrize("url", ["foo://x", "redis://host:notaport", ""])
def test_a_wrong_url_is_said_in_one_line(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"REDIS_URL: [^\n]+$"):
        connect(url)
