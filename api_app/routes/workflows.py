"""Workflow definitions, as forms and clients need them."""

from typing import Any

from fastapi import APIRouter, Response

from api_app.names import RunId
from api_app.routes import tutorial
from api_app.schemas import definition_view
from api_app.service import Service, Serving, json_response
from posthouse.errors import NotFound
from posthouse.ids import is_ulid
from posthouse.workflows.definition import Workflow

router = APIRouter(prefix="/workflows", tags=["workflows"])


@router.get("", summary="List the definitions")
async def get_workflows(service: Serving) -> Response:
    """Every definition with the JSON Schemas of its input and output."""
    definitions = [definition_view(service.workflows[name]) for name in sorted(service.workflows)]
    return json_response({"workflows": definitions})


@router.get("/{name}", summary="Look at a definition, or at a run by its id")
async def get_workflow(service: Serving, name: RunId) -> Response:
    """A ULID names a run (with the tutorial's field names), anything else a definition."""
    if is_ulid(name):
        return await tutorial.show(service, name)
    return json_response(definition_view(_definition(service, name)))


@router.post("/{name}", include_in_schema=False)
async def post_workflow(service: Serving, name: str) -> Response:
    """Shows the way: the tutorial has a route of this form, but not for every workflow."""
    definition = _definition(service, name)
    raise NotFound(
        f"runs of {definition.name!r} are submitted at POST /api/v1/runs, with the name as"
        " `workflow`; there are short routes for research and orchestrate only"
    )


def _definition(service: Service, name: str) -> Workflow[Any, Any]:
    definition = service.workflows.get(name)
    if definition is None:
        known = ", ".join(sorted(service.workflows)) or "none"
        raise NotFound(f"there is no workflow {name[:64]!r}; there are: {known}")
    return definition
