"""Plans: the subtasks of a run, and what has become of each."""

from fastapi import APIRouter, Response

from api_app.names import RunId
from api_app.plans import plan_view
from api_app.service import TENANT, Serving, json_response, promptly

router = APIRouter(prefix="/runs", tags=["runs"])


@router.get("/{run_id}/plan", summary="Look at a run's plan")
async def get_plan(service: Serving, run_id: RunId) -> Response:
    """Nodes, edges, states and costs; 404 for a run that has no plan, or none yet."""
    async with promptly():
        run = await service.records.get(run_id, TENANT)
        progress = await service.plans.of(run)
    return json_response(plan_view(run_id, progress))
