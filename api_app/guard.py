"""What stands before every route: request ids, headers, and a look at each body."""

import asyncio
import re
from ipaddress import ip_address

import orjson
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from api_app.problems import problem, request_id
from posthouse.errors import (
    ConfigurationError,
    InvalidRequest,
    PayloadTooLarge,
    RequestCode,
    RequestError,
)
from posthouse.ids import new_token

MAX_DEPTH = 64
BODY_SECONDS = 15.0
TOO_DEEP = f"the body is nested deeper than {MAX_DEPTH} levels"

ANY_HOST = "*"
ALIVE = "/health/live"
MISDIRECTED = 421
NOT_SERVED = (
    "the Host header names a host that is not served here; POSTHOUSE_HOSTS says which names are"
)

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(?::[0-9]{0,5})?", re.IGNORECASE)
_NAMED_HOST = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_LONG_NUMBER = re.compile(rb"(?<![\d.])(-?\d{19,})(?![\d.eE])")
_NO_NUMBER = re.compile(r"NaN|Infinity")
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_log = structlog.get_logger(__name__)


def named_hosts(setting: str) -> frozenset[str]:
    """The names in POSTHOUSE_HOSTS, in lower case. Raises ConfigurationError."""
    names = {name.strip().lower() for name in setting.split(",")} - {""}
    for name in sorted(names):
        if _NAMED_HOST.fullmatch(name) is None:
            raise ConfigurationError(
                f"POSTHOUSE_HOSTS: {name[:80]!r} is no name of a host; give names without scheme"
                " and port, as in api.example.org,*.example.com"
            )
    return frozenset(name.removesuffix(".") for name in names)


def serves(host: str, hosts: frozenset[str]) -> bool:
    """Whether a Host header names this service: by an address, a name without a dot, or one of `hosts`."""
    if not host or ANY_HOST in hosts:
        return True
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1].lower().removesuffix(".")
    if name.startswith("["):
        return _is_ip(name[1:-1], version=6)
    if "." not in name or _is_ip(name, version=4):
        return name != ""
    above = name.split(".")[1:]
    return name in hosts or any("*." + ".".join(above[n:]) in hosts for n in range(len(above)))


def _is_ip(text: str, version: int) -> bool:
    try:
        return ip_address(text).version == version
    except ValueError:
        return False


class Edge:
    """Gives every request (and its log lines) an id and every answer its headers; what nobody caught is a 500 here.

    A request for a host that is not served gets 421: a browser that was led here by a name of somebody
    else's would act for that page.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        known = given if _REQUEST_ID.fullmatch(given) else new_token()
        scope.setdefault("state", {})["request_id"] = known
        served = scope["path"] == ALIVE or all(
            serves(host, self._hosts) for host in headers.getlist("host")
        )
        with bound_contextvars(request_id=known):
            await self._answer(self._app if served else _not_served, scope, receive, send)

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id(scope)
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await app(scope, receive, send_with_headers)
        except Exception:
            _log.exception("request_failed", path=scope["path"])
            if started:
                raise
            detail = "an unexpected error; the log has it under this request id"
            answer = problem(scope, RequestCode.INTERNAL, detail)
            await answer(scope, receive, send_with_headers)


async def _not_served(scope: Scope, receive: Receive, send: Send) -> None:
    answer = problem(
        scope,
        RequestCode.INVALID_REQUEST,
        NOT_SERVED,
        status=MISDIRECTED,
        # What there is of a body is not waited for.
        headers={"Connection": "close"},
    )
    await answer(scope, receive, send)


class BodyGuard:
    """Lets a body pass only when it is JSON of a sane size and shape. `limit` is in bytes."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if "content-length" not in headers and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._checked(scope, headers, receive)
        except ClientDisconnect:
            return  # half a body is no request, and nobody is there to be told
        except RequestError as error:
            # What is left of the body is not waited for.
            answer = problem(
                scope, error.code, str(error), errors=error.errors, headers={"Connection": "close"}
            )
            await answer(scope, receive, send)
            return
        except UnsupportedMediaType as error:
            answer = problem(scope, RequestCode.INVALID_REQUEST, str(error), status=415)
            await answer(scope, receive, send)
            return
        handed_over = False

        async def receive_again() -> Message:
            nonlocal handed_over
            if handed_over:
                return await receive()
            handed_over = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_again, send)

    async def _checked(self, scope: Scope, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._limit:
            raise _too_large(self._limit)
        body = await self._read(receive)
        if body:
            _check_media_type(headers)
            check_json(body)
            MutableHeaders(scope=scope)["content-type"] = "application/json"
        return body

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._limit:
                        raise _too_large(self._limit)
        except TimeoutError:
            raise InvalidRequest("the body did not arrive in time") from None
        return bytes(body)


class UnsupportedMediaType(Exception):
    """The body is something else than JSON."""


def _check_media_type(headers: Headers) -> None:
    """JSON; or what curl says by itself, but not from a page, whose browser asked nobody."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("the body must be plain JSON, without a Content-Encoding")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return
    if kind in ("", "application/x-www-form-urlencoded") and "origin" not in headers:
        return
    raise UnsupportedMediaType("the body must be JSON: send Content-Type: application/json")


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is above {limit} bytes")


def check_json(body: bytes) -> None:
    """Raises InvalidRequest, which says where, unless every reader takes the JSON alike."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _no_json(_reason(body, error)) from None
    bare = _STRING.sub(b"0", body)
    _check_depth(bare)
    for number in _LONG_NUMBER.finditer(bare):
        if not -(2**63) <= int(number[1]) < 2**64:
            raise _no_json("the body has an integer of more than 64 bits; send it as a string")
    # Both texts have one colon for each key, so a key that vanished was there twice.
    if bare.count(b":") != _STRING.sub(b"0", orjson.dumps(value)).count(b":"):
        raise _no_json("an object in the body has the same key twice")


def _reason(body: bytes, error: orjson.JSONDecodeError) -> str:
    """Why it could not be read, in words for whoever wrote it."""
    try:
        text = body.decode()
    except UnicodeDecodeError as broken:
        return f"the body is not UTF-8 (byte {broken.start + 1})"
    where = f"(line {error.lineno}, column {error.colno})"
    if "depth" in error.msg:
        return TOO_DEEP
    if "infinity" in error.msg:
        return f"a number is too large {where}"
    if found := _NO_NUMBER.match(text, error.pos):
        return f"the body is not JSON, which has no {found[0]} {where}"
    return f"the body is not JSON: {error.msg} {where}"


def _check_depth(bare: bytes) -> None:
    brackets = bare.translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise _no_json(TOO_DEEP)


def _no_json(message: str) -> InvalidRequest:
    return InvalidRequest(message, errors=({"location": "body", "message": message},))
