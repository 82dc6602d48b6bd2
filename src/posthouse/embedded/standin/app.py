"""The stand-in model as an ASGI application, which holds all that it remembers."""

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from posthouse.embedded.standin.completions import Completions
from posthouse.embedded.standin.control import Control
from posthouse.embedded.standin.embedding import embeddings
from posthouse.embedded.standin.refused import Refused, check_key, check_model
from posthouse.embedded.standin.script import Pace, Script

MODEL = "stand-in"
_CREATED = 946_684_800


def create_app(latency_ms: float = 0, token_ms: float = 0) -> ASGIApp:
    """A new stand-in; milliseconds until the first piece of an answer, and between pieces."""
    script = Script(Pace(latency_ms, token_ms))
    return Starlette(
        routes=[
            Route("/v1/chat/completions", Completions(script).create, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/v1/models/{name:path}", _model, methods=["GET"]),
            *Control(script).routes(),
        ],
        exception_handlers={Refused: _refused, HTTPException: _http_error},
    )


async def _models(request: Request) -> Response:
    check_key(request)
    return _json({"object": "list", "data": [_described(MODEL)]})


async def _model(request: Request) -> Response:
    check_key(request)
    name = str(request.path_params["name"])
    check_model(name)
    return _json(_described(name))


def _described(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "posthouse"}


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, Refused):
        raise error
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = f"{request.method} {request.url.path}: {error.detail}."
    code = "not_found" if error.status_code == 404 else "method_not_allowed"
    return Refused(message, status=error.status_code, code=code).response()
