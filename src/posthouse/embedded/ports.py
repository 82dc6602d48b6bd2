"""Ports of this machine: what keeps a server from one, and a free one."""

import errno
import os
import random
import socket
from itertools import islice

# Below the range from which the kernel takes ports for outgoing connections: a client that
# reconnects to a server under restart could otherwise be given that server's own port.
_FIRST, _LAST = 20_000, 29_999
_TRIES = 500


def obstacle(host: str, port: int) -> str | None:
    """Why no server can listen there now; None when one can."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return error.strerror or str(error)
    reasons = [_try(family, address) for family, _, _, _, address in found]
    # A name may stand for an address family that this machine lacks; a port in use is final.
    if errno.EADDRINUSE in reasons:
        return "it is in use"
    if None in reasons:
        return None
    return next((os.strerror(reason) for reason in reasons if reason is not None), "no address")


def _try(family: int, address: tuple[object, ...]) -> int | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        return error.errno or errno.EIO
    return None


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports of `host` that nobody uses now. Raises OSError when there are too few."""
    tried = random.Random().sample(range(_FIRST, _LAST + 1), _TRIES)
    found = list(islice((port for port in tried if obstacle(host, port) is None), count))
    if len(found) < count:
        raise OSError(f"too few free ports between {_FIRST} and {_LAST} on {host}")
    return found
