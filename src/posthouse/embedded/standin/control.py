"""Routes for whoever tests with the stand-in: tell it what to do next, see what it was asked."""

from dataclasses import asdict
from typing import TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from posthouse.embedded.standin.refused import misfit, parsed
from posthouse.embedded.standin.script import Behaviour, Pace, Script

_Model = TypeVar("_Model", bound=BaseModel)


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Script(_Told):
    behaviours: tuple[Behaviour, ...]


class _Release(_Told):
    name: str = Field(min_length=1)


class _Latency(_Told):
    latency_ms: float | None = Field(default=None, ge=0)
    token_ms: float | None = Field(default=None, ge=0)


class Control:
    """The control routes of one script."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def routes(self) -> list[Route]:
        """All of them, with their paths."""
        return [
            Route("/control/script", self._tell, methods=["POST"]),
            Route("/control/release", self._release, methods=["POST"]),
            Route("/control/latency", self._slow_down, methods=["POST"]),
            Route("/control/requests", self._requests, methods=["GET"]),
            Route("/control", self._reset, methods=["DELETE"]),
        ]

    async def _tell(self, request: Request) -> Response:
        told = await _body(request, _Script)
        self._script.tell(told.behaviours)
        return Response(status_code=204)

    async def _release(self, request: Request) -> Response:
        self._script.release((await _body(request, _Release)).name)
        return Response(status_code=204)

    async def _slow_down(self, request: Request) -> Response:
        told = (await _body(request, _Latency)).model_dump(exclude_none=True)
        self._script.pace = Pace(**(asdict(self._script.pace) | told))
        return Response(status_code=204)

    async def _requests(self, request: Request) -> Response:
        body = orjson.dumps([asdict(record) for record in self._script.records])
        return Response(body, media_type="application/json")

    async def _reset(self, request: Request) -> Response:
        self._script.reset()
        return Response(status_code=204)


async def _body(request: Request, kind: type[_Model]) -> _Model:
    try:
        return kind.model_validate(parsed(await request.body()))
    except ValidationError as error:
        raise misfit(error) from error
