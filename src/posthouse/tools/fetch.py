"""Reads web pages; the one file of the tools that speaks HTTP, only to what the guard allows."""

import asyncio
import contextvars
import re
import socket
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address
from typing import cast

import httpx
import structlog
from httpx_secure import SSRFProtectionError, httpx_ssrf_protection

from posthouse.errors import ToolFailed
from posthouse.tools.guard import WEB_PORTS, Ip, WebAddress, check_url, is_public, redirected
from posthouse.tools.model import Page
from posthouse.tools.text import Readable, decoded, named_charset, readable_html, readable_text
from posthouse.tools.wire import meter, took

MAX_REDIRECTS = 3
_MAX_ADDRESSES = 4
_MOST_ANSWERS = 256
_NAME_THREADS = 16
_TEXT_THREADS = 2
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_HTML = frozenset({"text/html", "application/xhtml+xml"})
_PLAIN = re.compile(r"text/[\w.+-]+|application/(?:[\w.-]+\+)?(?:json|xml)")
_LOCATION = "posthouse.location"
_CHARSET = re.compile(r";\s{0,8}charset\s{0,8}=\s{0,8}\"?([\w.:-]{1,40})", re.IGNORECASE)
_HEADERS = {
    "user-agent": "posthouse",
    "accept": "text/html, application/xhtml+xml, text/*;q=0.9, application/json;q=0.8, */*;q=0.1",
    # Their output can be bounded while it streams; that of br and zstd cannot.
    "accept-encoding": "gzip, deflate",
}

Resolve = Callable[[str, int], Awaitable[tuple[Ip, ...]]]
log = structlog.get_logger()


@dataclass(frozen=True)
class Caps:
    """Bounds of one read: seconds up to the last byte, then for its text; bytes after decompression."""

    seconds: float = 10.0
    connect_seconds: float = 3.0
    text_seconds: float = 10.0
    bytes: int = 2_000_000


@dataclass(frozen=True)
class _Body:
    address: WebAddress
    content_type: str
    content: bytes


class Names:
    """The system's resolver, on threads of its own: it cannot be interrupted, and a site can be slow to name itself."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_NAME_THREADS, "names")

    async def resolve(self, host: str, port: int) -> tuple[Ip, ...]:
        """Every address of the host. Raises OSError."""
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return tuple(dict.fromkeys(ip_address(answer[4][0]) for answer in answers))

    def close(self) -> None:
        """Drops what waits; a look-up under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class WebReader:
    """Reads http(s) pages with one long-lived client. Close it with `aclose`.

    A host is resolved here, every answer is checked with `allow`, and the connection goes to a
    checked IP address; after each redirect again. httpx-secure checks once more at the connection:
    it is never given a name, because it looks one up by connecting to it.
    """

    def __init__(
        self,
        *,
        allow: Callable[[Ip], bool] = is_public,
        ports: frozenset[int] = WEB_PORTS,
        resolve: Resolve | None = None,
        caps: Caps | None = None,
    ) -> None:
        self._allow = allow
        self._ports = ports
        self._names = Names()
        self._resolve = resolve or self._names.resolve
        self._caps = caps or Caps()
        # Pages of many tags take seconds; they wait for each other and for nobody else.
        self._texts = ThreadPoolExecutor(_TEXT_THREADS, "texts")
        # No connection outlives its page: one opened for a host would serve another at the same
        # IP without a look at its certificate. No cookies either: runs share this client.
        client = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            headers=_HEADERS,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx.Timeout(self._caps.seconds, connect=self._caps.connect_seconds),
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=0),
            event_hooks={"response": [_set_location_aside]},
        )
        self._client = httpx_ssrf_protection(
            client,
            check_globally_reachable=False,
            custom_validator=lambda _host, ip, _port: allow(ip),
            dns_cache_size=0,
            dns_cache_ttl=0,
        )
        meter(self._client)

    async def read(self, address: str) -> Page:
        """The page's text. Raises ToolFailed.

        Its kind is timeout, http_error, forbidden_address, too_large, unsupported or unreadable.
        """
        try:
            async with asyncio.timeout(self._caps.seconds):
                body = await self._follow(check_url(address, ports=self._ports))
        except (TimeoutError, httpx.TimeoutException):
            raise ToolFailed("the site took too long", kind="timeout", retryable=True) from None
        except SSRFProtectionError:
            raise _not_public() from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            log.info("page_unreachable", error=type(error).__name__, detail=str(error))
            raise ToolFailed(
                "the site could not be reached", kind="http_error", retryable=True
            ) from None
        return _page(body.address, await self._text_of(body))

    async def aclose(self) -> None:
        """Closes the client."""
        self._names.close()
        self._texts.shutdown(wait=False, cancel_futures=True)
        await self._client.aclose()

    async def _text_of(self, body: _Body) -> Readable:
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        try:
            async with asyncio.timeout(self._caps.text_seconds):
                return await loop.run_in_executor(self._texts, context.run, _readable, body)
        except TimeoutError:
            raise ToolFailed(
                "the page took too long to be read", kind="timeout", retryable=True
            ) from None

    async def _follow(self, address: WebAddress) -> _Body:
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(address)
            if isinstance(answer, _Body):
                return answer
            address = answer
        raise ToolFailed(f"the page redirects more than {MAX_REDIRECTS} times", kind="http_error")

    async def _get(self, address: WebAddress) -> WebAddress | _Body:
        """The body, or where the page redirects to; tries the host's addresses in order."""
        addresses = await self._checked(address)
        for ip in addresses[:-1]:
            try:
                return await self._get_from(ip, address)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._get_from(addresses[-1], address)

    async def _checked(self, address: WebAddress) -> tuple[Ip, ...]:
        try:
            addresses = await self._resolve(address.host, address.port)
        except (OSError, ValueError):
            addresses = ()
        if not addresses:
            raise ToolFailed(f"there is no site named {address.host}", kind="http_error")
        if len(addresses) > _MOST_ANSWERS:
            raise ToolFailed(f"{address.host} has too many addresses", kind="http_error")
        if not all(self._allow(ip) for ip in addresses):
            raise _not_public()
        return addresses[:_MAX_ADDRESSES]

    async def _get_from(self, ip: Ip, address: WebAddress) -> WebAddress | _Body:
        # The host's name is in the Host header and the TLS handshake, which checks the certificate;
        # the target is sent as it was checked, byte for byte.
        request = self._client.build_request(
            "GET",
            httpx.URL(scheme=address.scheme, host=str(ip), port=address.port),
            headers={"host": address.authority},
            extensions=self._how(address),
        )
        response = await self._client.send(request, stream=True)
        async with aclosing(response):
            location = response.extensions[_LOCATION]
            if response.status_code in _REDIRECTS and location:
                return redirected(address, location, ports=self._ports)
            content_type = _checked_type(response)
            return _Body(address, content_type, await self._content(response))

    def _how(self, address: WebAddress) -> dict[str, object]:
        timeout = httpx.Timeout(self._caps.seconds, connect=self._caps.connect_seconds)
        return {
            "sni_hostname": address.host,
            "target": address.target.encode("ascii"),
            "timeout": timeout.as_dict(),
        }

    async def _content(self, response: httpx.Response) -> bytes:
        unpacker = _Unpacker(response.headers.get("content-encoding", ""), self._caps.bytes)
        raw = 0
        async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as chunks:
            async for chunk in chunks:
                raw += len(chunk)
                took(response, len(chunk))
                if raw > self._caps.bytes:
                    raise _too_large(self._caps.bytes)
                unpacker.feed(chunk)
        return unpacker.finished()


async def _set_location_aside(response: httpx.Response) -> None:
    """Before httpx reads it: it would also when it follows none, and raise what is not its own."""
    response.extensions[_LOCATION] = response.headers.pop("location", "")


class _Unpacker:
    """Unpacks a body piece by piece and stops at the limit, however small the packed bytes are."""

    def __init__(self, encoding: str, limit: int) -> None:
        self.content = bytearray()
        self._limit = limit
        name = encoding.strip().lower()
        if name not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise ToolFailed("the page is packed in a way that is not read", kind="unsupported")
        # 47: zlib finds out by itself whether it is gzip or zlib.
        self._zlib = zlib.decompressobj(47) if name not in ("", "identity") else None
        self._maybe_raw = name == "deflate"

    def feed(self, chunk: bytes) -> None:
        """Adds the next bytes. Raises ToolFailed when it is too much or damaged."""
        self.content += self._unpacked(chunk) if self._zlib else chunk
        if len(self.content) > self._limit:
            raise _too_large(self._limit)

    def finished(self) -> bytes:
        """The whole body. Raises ToolFailed when its end is missing."""
        if self._zlib and not self._zlib.eof:
            raise ToolFailed("the page arrived damaged", kind="unreadable", retryable=True)
        return bytes(self.content)

    def _unpacked(self, chunk: bytes) -> bytes:
        assert self._zlib is not None
        room = self._limit - len(self.content) + 1
        try:
            return self._zlib.decompress(chunk, room)
        except zlib.error:
            if not self._maybe_raw or self.content:
                raise ToolFailed("the page arrived damaged", kind="unreadable") from None
        # Some servers send deflate without its header.
        self._zlib, self._maybe_raw = zlib.decompressobj(-zlib.MAX_WBITS), False
        return self._unpacked(chunk)


def _checked_type(response: httpx.Response) -> str:
    status = response.status_code
    if not 200 <= status < 300:
        raise ToolFailed(
            f"the site answered with status {status}",
            kind="http_error",
            retryable=status in _RETRYABLE,
            status_code=status,
        )
    whole: str = response.headers.get("content-type", "")
    kind = whole.partition(";")[0].strip().lower()
    if kind not in _HTML and _PLAIN.fullmatch(kind) is None:
        raise ToolFailed(
            f"the document is {kind[:80] or 'of an unknown type'}; only text is read",
            kind="unsupported",
        )
    return whole


def _readable(body: _Body) -> Readable:
    charset = _CHARSET.search(body.content_type)
    declared = charset[1] if charset else None
    if body.content_type.partition(";")[0].strip().lower() not in _HTML:
        return readable_text(decoded(body.content, declared))
    return readable_html(decoded(body.content, declared or named_charset(body.content)))


def _page(address: WebAddress, readable: Readable) -> Page:
    if not readable.text.strip():
        raise ToolFailed("the page has no readable text", kind="unreadable")
    return Page(address=str(address), title=readable.title or address.host, text=readable.text)


def _not_public() -> ToolFailed:
    return ToolFailed(
        "this address is not allowed: it is not on the public internet", kind="forbidden_address"
    )


def _too_large(limit: int) -> ToolFailed:
    return ToolFailed(f"the page is larger than {limit / 1_000_000:g} MB", kind="too_large")
