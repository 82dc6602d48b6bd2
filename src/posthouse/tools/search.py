"""Finds documents where the operator says: in the corpus, or on the web through a search engine."""

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TypeVar, cast

import httpx
import structlog

from posthouse.errors import ConfigurationError, ToolFailed
from posthouse.logs import SECRET_LENGTH
from posthouse.registry import discover
from posthouse.tools import engines as built_in
from posthouse.tools.answer import clean
from posthouse.tools.model import SearchHit, SearchProvider
from posthouse.tools.search_engine import SearchEngine, SearchRequest, presentable

CORPUS = "corpus"

# A bad key, no credit, a plan that is used up (432, 433 are Tavily's): asking again does not help.
_REFUSALS = frozenset({401, 402, 403, 432, 433})
_RETRYABLE = frozenset({408, 425, 429})
_KEY = re.compile(r"[\x21-\x7e]+")
_HEADERS = {
    "user-agent": "posthouse",
    "accept": "application/json",
    # Its output can be bounded; that of br and zstd cannot.
    "accept-encoding": "gzip",
}

C = TypeVar("C", bound=SearchProvider)
log = structlog.get_logger()


@dataclass(frozen=True)
class SearchCaps:
    """Bounds of one search: seconds for everything up to the last byte, bytes after decompression."""

    seconds: float = 10.0
    connect_seconds: float = 3.0
    bytes: int = 2_000_000


def search_engines() -> dict[str, SearchEngine]:
    """Every web search engine by its name. Raises ConfigurationError when two have one name."""
    return discover([built_in], SearchEngine, key=lambda engine: engine.name)


def search_provider(name: str, *, key: str | None, url: str | None, corpus: C) -> "WebSearch | C":
    """The provider so called, `corpus` itself for corpus or ""; a WebSearch wants to be closed.

    Raises ConfigurationError as `chosen_engine` does.
    """
    chosen = chosen_engine(name, key=key, url=url)
    return WebSearch(chosen.engine, url=chosen.url, key=chosen.key) if chosen else corpus


@dataclass(frozen=True)
class ChosenEngine:
    """A web search engine, where it is asked and with which key ("" for none)."""

    engine: SearchEngine
    url: str
    key: str = field(repr=False)


def chosen_engine(name: str, *, key: str | None, url: str | None) -> ChosenEngine | None:
    """The engine that the settings choose; None for the corpus. Opens nothing.

    Raises ConfigurationError, which names the setting, when it is unknown or lacks its key or address.
    """
    wanted, known = name.strip().lower(), search_engines()
    if wanted in ("", CORPUS):
        return None
    engine = known.get(wanted)
    if engine is None:
        names = ", ".join([CORPUS, *sorted(known)])
        raise ConfigurationError(f"POSTHOUSE_SEARCH: {name[:80]!r} is none of {names}")
    return ChosenEngine(engine, _checked_url(engine, url), _checked_key(engine, key))


class WebSearch:
    """Searches the web through one engine with one long-lived client. Close it with `aclose`."""

    def __init__(
        self, engine: SearchEngine, *, url: str, key: str = "", caps: SearchCaps | None = None
    ) -> None:
        self._engine = engine
        self._url = url
        self._key = key
        self._caps = caps or SearchCaps()
        self._refused = False
        timeout = httpx.Timeout(self._caps.seconds, connect=self._caps.connect_seconds)
        self._client = httpx.AsyncClient(
            transport=_SecretParams(httpx.AsyncHTTPTransport(trust_env=False)),
            trust_env=False,
            follow_redirects=False,
            headers=_HEADERS,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=timeout,
        )

    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        """At most `limit` pages, best first. Raises ToolFailed.

        Its kind is timeout, http_error, too_large, unreadable, unavailable or invalid_arguments.
        No message holds a word of the engine, the address or the key.
        """
        words = clean(query).strip()
        if not words:
            raise ToolFailed("the query is empty", kind="invalid_arguments")
        try:
            body = await self._ask(self._engine.request(self._url, self._key, words, limit))
            hits = await asyncio.to_thread(self._found, body, limit)
        except ToolFailed as error:
            self._tell_operator(error)
            raise
        self._refused = False
        return hits

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._client.aclose()

    def _found(self, body: bytes, limit: int) -> tuple[SearchHit, ...]:
        secret = self._key if len(self._key) >= SECRET_LENGTH else ""
        return presentable(self._engine.hits(body), limit, secret=secret)

    def _tell_operator(self, error: ToolFailed) -> None:
        # Of what is behind it only the class: the text of some errors holds a header.
        cause = type(error.__context__).__name__ if error.__context__ else None
        said = {"engine": self._engine.name, "status": error.status_code, "cause": cause}
        if error.status_code not in _REFUSALS:
            log.info("search_failed", kind=error.kind, **said)
        elif not self._refused:
            self._refused = True
            log.warning("search_refused", **said)

    async def _ask(self, request: SearchRequest) -> bytes:
        try:
            async with asyncio.timeout(self._caps.seconds):
                return await self._sent(request)
        except (TimeoutError, httpx.TimeoutException):
            raise ToolFailed(
                "the search engine took too long", kind="timeout", retryable=True
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            raise ToolFailed(
                "the search engine could not be reached", kind="http_error", retryable=True
            ) from None

    async def _sent(self, request: SearchRequest) -> bytes:
        response = await self._client.send(
            self._client.build_request(
                request.method,
                request.url,
                params=request.params,
                json=request.body,
                headers=request.headers,
                extensions={"secret_params": request.secret_params},
            ),
            stream=True,
        )
        async with aclosing(response):
            _check_status(response.status_code)
            return _unpacked(
                await self._raw(response),
                response.headers.get("content-encoding", ""),
                self._caps.bytes,
            )

    async def _raw(self, response: httpx.Response) -> bytes:
        raw = bytearray()
        async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as chunks:
            async for chunk in chunks:
                raw += chunk
                if len(raw) > self._caps.bytes:
                    raise _too_large(self._caps.bytes)
        return bytes(raw)


class _SecretParams(httpx.AsyncBaseTransport):
    """Puts secret parameters into the query below the client, which logs and reports every URL."""

    def __init__(self, wire: httpx.AsyncBaseTransport) -> None:
        self._wire = wire

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        extensions = dict(request.extensions)
        secret = extensions.pop("secret_params", {})
        whole = httpx.Request(
            request.method,
            request.url.copy_merge_params(secret) if secret else request.url,
            headers=request.headers,
            stream=request.stream,
            extensions=extensions,
        )
        return await self._wire.handle_async_request(whole)

    async def aclose(self) -> None:
        await self._wire.aclose()


def _check_status(status: int) -> None:
    if 200 <= status < 300:
        return
    message = f"the search engine answered with status {status}"
    if status in _REFUSALS:
        message += "; searching again does not help until the operator has mended its settings"
    raise ToolFailed(
        message,
        kind="http_error",
        retryable=status in _RETRYABLE or status >= 500,
        status_code=status,
    )


def _unpacked(raw: bytes, encoding: str, limit: int) -> bytes:
    match encoding.strip().lower():
        case "" | "identity":
            return raw
        case "gzip" | "x-gzip":
            unpacker = zlib.decompressobj(31)
        case _:
            raise _damaged()
    try:
        content = unpacker.decompress(raw, limit + 1)
    except zlib.error:
        raise _damaged() from None
    if len(content) > limit:
        raise _too_large(limit)
    if not unpacker.eof:
        raise _damaged(retryable=True)
    return content


def _damaged(*, retryable: bool = False) -> ToolFailed:
    return ToolFailed(
        "the answer of the search engine cannot be unpacked", kind="unreadable", retryable=retryable
    )


def _too_large(limit: int) -> ToolFailed:
    return ToolFailed(
        f"the answer of the search engine is larger than {limit / 1_000_000:g} MB", kind="too_large"
    )


def _checked_key(engine: SearchEngine, key: str | None) -> str:
    key = (key or "").strip()
    if engine.needs_key and not key:
        raise ConfigurationError(f"POSTHOUSE_SEARCH={engine.name} needs POSTHOUSE_SEARCH_API_KEY")
    if key and _KEY.fullmatch(key) is None:
        raise ConfigurationError("POSTHOUSE_SEARCH_API_KEY holds characters that no key has")
    return key


def _checked_url(engine: SearchEngine, url: str | None) -> str:
    whole = (url or "").strip() or engine.url
    if whole is None:
        raise ConfigurationError(
            f"POSTHOUSE_SEARCH={engine.name} needs POSTHOUSE_SEARCH_URL, the address where it runs"
        )
    if not _is_address(whole):
        # Not shown: a user name in it may come with a password.
        raise ConfigurationError(
            "POSTHOUSE_SEARCH_URL is no http(s) address of host, port and path alone"
        )
    return whole.rstrip("/")


def _is_address(url: str) -> bool:
    if not url.isprintable() or " " in url:
        return False
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    if parts.scheme not in ("http", "https") or not parts.host:
        return False
    return not (parts.userinfo or "?" in url or "#" in url) and (parts.port or 80) <= 65535
