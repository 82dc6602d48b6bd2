"""Every error as problem details (RFC 9457): one table, one shape."""

from collections.abc import Mapping
from http import HTTPStatus
from itertools import pairwise
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from api_app.names import canonical
from posthouse.control.submission import LONGEST_LOCATION
from posthouse.control.wording import in_words
from posthouse.errors import InvalidAnswer, QueueFull, RequestCode, RequestError, StorageUnavailable
from posthouse.ids import is_ulid

STATUS = {
    RequestCode.INVALID_REQUEST: 400,
    RequestCode.NOT_FOUND: 404,
    RequestCode.CONFLICT: 409,
    RequestCode.GONE: 410,
    RequestCode.PAYLOAD_TOO_LARGE: 413,
    RequestCode.IDEMPOTENCY_MISMATCH: 422,
    RequestCode.QUEUE_FULL: 429,
    RequestCode.INTERNAL: 500,
    RequestCode.UNAVAILABLE: 503,
}
TITLES = {
    RequestCode.INVALID_REQUEST: "The request is not valid",
    RequestCode.NOT_FOUND: "There is no such thing",
    RequestCode.CONFLICT: "The thing's state does not allow this",
    RequestCode.GONE: "The time for this is over",
    RequestCode.PAYLOAD_TOO_LARGE: "The body is too large",
    RequestCode.IDEMPOTENCY_MISMATCH: "The idempotency key belongs to another request",
    RequestCode.QUEUE_FULL: "No further run is taken in now",
    RequestCode.INTERNAL: "Something went wrong here",
    RequestCode.UNAVAILABLE: "The service cannot answer now",
}
RETRY_AFTER_SECONDS = 1
METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
MEDIA_TYPE = "application/problem+json"
TUTORIAL_PREFIX = "/api/v1/workflows/"
MOST_ERRORS = 20
# Where in a path the id of a run stands: behind one of these.
RUNS = ("runs", "workflows")
EVENT_STREAM = "text/event-stream"
COME_BACK = b"retry: 2000\n\n"

_log = structlog.get_logger(__name__)


class Detail(BaseModel):
    """One thing that is wrong with the request."""

    location: str
    message: str


class Problem(BaseModel):
    """Problem details (RFC 9457), the body of every error."""

    type: str = Field(examples=["urn:posthouse:problem:not_found"])
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path that was asked for.")
    code: RequestCode
    retryable: bool = Field(description="Whether the same request may succeed later.")
    request_id: str
    run_id: str | None = None
    errors: list[Detail] | None = None


def problem(
    scope: Scope,
    code: RequestCode,
    detail: str,
    *,
    status: int | None = None,
    errors: tuple[Mapping[str, str], ...] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The response for an error of this request; the status is the code's unless one is given.

    Of many errors it shows the first ones, and the detail says so.
    """
    if len(errors) > MOST_ERRORS:
        detail += f" (the first {MOST_ERRORS} of {len(errors)} errors are listed)"
    status = status or STATUS[code]
    retryable = code in (RequestCode.UNAVAILABLE, RequestCode.QUEUE_FULL)
    body: dict[str, Any] = {
        "type": f"urn:posthouse:problem:{code}",
        "title": TITLES[code],
        "status": status,
        "detail": detail,
        "instance": _shown(scope["path"]),
        "code": code,
        "retryable": retryable,
        "request_id": request_id(scope),
    }
    parts = map(canonical, scope["path"].split("/"))
    run_id = next((part for room, part in pairwise(parts) if room in RUNS and is_ulid(part)), None)
    if run_id is not None:
        body["run_id"] = run_id
    if errors:
        body["errors"] = [dict(error) for error in errors[:MOST_ERRORS]]
    if scope["path"].startswith(TUTORIAL_PREFIX):
        body |= {"error": code, "message": detail}
    extra = {"Retry-After": str(RETRY_AFTER_SECONDS)} if retryable else {}
    return Response(
        orjson.dumps(body), status, headers={**extra, **(headers or {})}, media_type=MEDIA_TYPE
    )


def request_id(scope: Scope) -> str:
    """The id of the request, given by the caller or made here."""
    return str(scope.get("state", {}).get("request_id", ""))


def add_problem_handlers(app: FastAPI) -> None:
    """From now on the app answers every error with problem details."""
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(StorageUnavailable, _unavailable)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _of_the_framework)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    wait = {"Retry-After": str(error.retry_after)} if isinstance(error, QueueFull) else None
    status = 422 if isinstance(error, InvalidAnswer) else None
    return problem(
        request.scope, error.code, str(error), status=status, errors=error.errors, headers=wait
    )


async def _unavailable(request: Request, error: Exception) -> Response:
    _log.warning("storage_unavailable", reason=str(error), cause=repr(error.__cause__))
    if _is_event_source(request):
        return Response(COME_BACK, headers={"Cache-Control": "no-cache"}, media_type=EVENT_STREAM)
    return problem(request.scope, RequestCode.UNAVAILABLE, str(error))


def _is_event_source(request: Request) -> bool:
    """A browser's, which gives up for good at any error; at a stream that ends it comes back."""
    wanted = request.headers.get("accept")
    return wanted == EVENT_STREAM and request.scope["path"].endswith("/stream")


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = tuple(
        {"location": _location(found["loc"]), "message": in_words(found["type"], found["msg"])}
        for found in error.errors()
    )
    detail = f"{errors[0]['location']}: {errors[0]['message']}" if errors else "it does not fit"
    return problem(request.scope, RequestCode.INVALID_REQUEST, detail, errors=errors)


async def _of_the_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return problem(request.scope, RequestCode.NOT_FOUND, "there is nothing at this path")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods(request))
        return problem(
            request.scope,
            RequestCode.INVALID_REQUEST,
            f"{request.method} is not possible here; what is: {allowed}",
            status=error.status_code,
            headers={"Allow": allowed},
        )
    return problem(
        request.scope, RequestCode.INVALID_REQUEST, error.detail, status=error.status_code
    )


def _location(parts: tuple[str | int, ...]) -> str:
    location = ".".join(str(part) for part in parts if part != "body") or "body"
    return location[:LONGEST_LOCATION]


def _methods(request: Request) -> list[str]:
    """Every method that this path has, asked of each route as a request would."""
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def _shown(path: str) -> str:
    return path[:200].encode(errors="replace").decode()
