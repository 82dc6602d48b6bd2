"""The front page: where to go from here."""

from fastapi import APIRouter, Response

from api_app.service import json_response

router = APIRouter(include_in_schema=False)


@router.get("/")
async def front() -> Response:
    """Names the places that somebody who comes by may look for."""
    return json_response(
        {"service": "posthouse", "api": "/api/v1", "docs": "/docs", "openapi": "/openapi.json"}
    )
