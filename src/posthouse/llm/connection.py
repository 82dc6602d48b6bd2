"""The connections to an endpoint: long-lived, bounded, and never silent for long."""

from typing import TypeVar

import httpx2

from posthouse.llm.bounded import bound_error

Client = TypeVar("Client", bound=httpx2.AsyncClient)

# Packed, a few bytes on the wire are seconds of work in one go.
UNPACKED = {"Accept-Encoding": "identity"}

_CONNECT_SECONDS = 10.0


def connected(kind: type[Client], *, max_connections: int, idle_seconds: float) -> Client:
    """A client of the SDK's kind, which gives an answer up of which nothing arrives for `idle_seconds`."""
    return kind(
        timeout=httpx2.Timeout(idle_seconds, connect=_CONNECT_SECONDS),
        limits=httpx2.Limits(
            max_connections=max_connections, max_keepalive_connections=max_connections
        ),
        event_hooks={"response": [bound_error]},
    )
