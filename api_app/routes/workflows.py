"""Workflow definitions, as forms and clients need them."""

from fastapi import APIRouter, Response

from api_app.routes import tutorial
from api_app.schemas import definition_view
from api_app.service import Serving, json_response
from posthouse.errors import NotFound
from posthouse.ids import is_ulid

router = APIRouter(prefix="/workflows", tags=["workflows"])


@router.get("", summary="List the definitions")
async def get_workflows(service: Serving) -> Response:
    """Every definition with the JSON Schemas of its input and output."""
    definitions = [definition_view(service.workflows[name]) for name in sorted(service.workflows)]
    return json_response({"workflows": definitions})


@router.get("/{name}", summary="Look at a definition, or at a run by its id")
async def get_workflow(service: Serving, name: str) -> Response:
    """A ULID names a run (with the tutorial's field names), anything else a definition."""
    if is_ulid(name):
        return await tutorial.show(service, name)
    definition = service.workflows.get(name)
    if definition is None:
        known = ", ".join(sorted(service.workflows)) or "none"
        raise NotFound(f"there is no workflow {name[:64]!r}; there are: {known}")
    return json_response(definition_view(definition))
