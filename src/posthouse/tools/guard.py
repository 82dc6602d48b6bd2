"""Which web addresses a tool may reach; pure, so that every rule can be tried without a network."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from posthouse.errors import ToolFailed

Ip: TypeAlias = IPv4Address | IPv6Address

MAX_URL = 2048
WEB_PORTS = frozenset({80, 443})

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?")
_BRACKETED = re.compile(r"\[[0-9a-fA-F:.]+\](?::[0-9]*)?")
_ODD = re.compile(r"[\x00-\x20\x7f\\]")
_PATH_SAFE = "/%:@!$&'()*+,;=~"
_QUERY_SAFE = _PATH_SAFE + "?"

# `is_global` is true for these although nothing public answers there.
_NOT_PUBLIC_V4 = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments; one cloud keeps its metadata at .192
    IPv4Network("192.88.99.0/24"),  # 6to4 relays, withdrawn
    IPv4Network("168.63.129.16/32"),  # a cloud's own services, reached from inside its machines
)
_PUBLIC_V6 = IPv6Network("2000::/3")
_DOCUMENTATION_V6 = IPv6Network("3fff::/20")
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_TUNNELLED = {0x00005EFE, 0x02005EFE}  # ISATAP: the low half is this and an IPv4 address


@dataclass(frozen=True)
class WebAddress:
    """A checked address: lower-case host without brackets; `target` is path and query, encoded."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and, unless it is the scheme's own, port; as a Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def check_url(url: str, *, ports: frozenset[int] = WEB_PORTS) -> WebAddress:
    """The parts of an http(s) URL that keeps the rules. Raises ToolFailed: forbidden_address.

    A URL that passes may still name a private host: what it resolves to has to pass `is_public`.
    """
    text = url.strip()
    if len(text) > MAX_URL:
        raise _forbidden(f"it is longer than {MAX_URL} characters")
    if _ODD.search(text):
        raise _forbidden("it contains spaces, control characters or backslashes")
    try:
        parts = urlsplit(text)
        port = parts.port
        target = _target(parts)
    except ValueError:
        raise _forbidden("it is not a valid URL") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise _forbidden("only http and https are read")
    if "@" in parts.netloc:
        raise _forbidden("it contains a user name")
    port = _DEFAULT_PORTS[parts.scheme] if port is None else port
    if port not in ports:
        raise _forbidden(f"port {port} is not read")
    return WebAddress(parts.scheme, _host(parts), port, target)


def redirected(
    current: WebAddress, location: str, *, ports: frozenset[int] = WEB_PORTS
) -> WebAddress:
    """Where a redirect leads, by the same rules and never from https to http. Raises ToolFailed."""
    if len(location) > MAX_URL or _ODD.search(location.strip()):
        raise _forbidden("it redirects to an address that is not a valid URL")
    try:
        joined = urljoin(str(current), location.strip())
    except ValueError:
        raise _forbidden("it redirects to an address that is not a valid URL") from None
    address = check_url(joined, ports=ports)
    if current.scheme == "https" and address.scheme != "https":
        raise _forbidden("it redirects from https to http")
    return address


def is_public(ip: Ip) -> bool:
    """Whether the address, and any IPv4 address wrapped in it, is one of the public internet."""
    match ip:
        case IPv4Address():
            special = any(ip in network for network in _NOT_PUBLIC_V4)
            return ip.is_global and not (ip.is_multicast or ip.is_reserved or special)
        case IPv6Address():
            return _is_public_v6(ip)


def _is_public_v6(ip: IPv6Address) -> bool:
    if ip.scope_id is not None:
        return False
    if (int(ip) >> 32) & 0xFFFFFFFF in _TUNNELLED and not is_public(_low_v4(ip)):
        return False
    if any(ip in network for network in (_NAT64, _COMPATIBLE, _TRANSLATED)):
        return is_public(_low_v4(ip))
    if ip.ipv4_mapped is not None:
        return is_public(ip.ipv4_mapped)
    if ip.sixtofour is not None:
        return is_public(ip.sixtofour)
    if ip.teredo is not None:
        return False  # it is reached over a relay, at whatever IPv4 address it wraps
    return ip in _PUBLIC_V6 and ip not in _DOCUMENTATION_V6 and ip.is_global


def _low_v4(ip: IPv6Address) -> IPv4Address:
    return IPv4Address(int(ip) & 0xFFFFFFFF)


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if "[" in parts.netloc and _BRACKETED.fullmatch(parts.netloc) is None:
        raise _forbidden("its host is not a valid name")
    if ":" in host:
        try:
            literal = ip_address(host)
        except ValueError:
            raise _forbidden("its host is not a valid name") from None
        return str(literal)
    try:
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except ValueError:
        name = ""
    if _HOST.fullmatch(name) is None:
        raise _forbidden("its host is not a valid name")
    return name


def _target(parts: SplitResult) -> str:
    path = quote(_without_dots(parts.path), safe=_PATH_SAFE) or "/"
    return f"{path}?{quote(parts.query, safe=_QUERY_SAFE)}" if parts.query else path


def _without_dots(path: str) -> str:
    """The path after its steps `.` and `..`, as a browser sends it."""
    steps = path.split("/")
    kept: list[str] = []
    for step in steps:
        if step == "..":
            del kept[max(len(kept) - 1, 1) :]
        elif step != ".":
            kept.append(step)
    return "/".join(kept) + ("/" if steps[-1] in (".", "..") else "")


def _forbidden(reason: str) -> ToolFailed:
    return ToolFailed(f"this address is not allowed: {reason}", kind="forbidden_address")
