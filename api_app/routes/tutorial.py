"""The tutorial's routes, with its field names; everything behind them is the same as for /runs."""

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api_app.inputs import InputAnswer
from api_app.names import RunId
from api_app.routes.inputs import answered
from api_app.routes.runs import IdempotencyKey, accepted_response, checked_key, submit
from api_app.routes.streams import Start, progress_stream
from api_app.schemas import OrchestrateRequest, ResearchRequest, tutorial_view
from api_app.service import TENANT, Service, Serving, json_response, promptly
from posthouse.control.submission import Submission

router = APIRouter(prefix="/workflows", tags=["tutorial"])


@router.post("/research", status_code=202, summary="Start a research run")
async def post_research(
    service: Serving, wanted: ResearchRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answers 202 when the run is in Redis."""
    return await _started(service, "research", "research", wanted, idempotency_key)


@router.post("/orchestrate", status_code=202, summary="Start an orchestrator")
async def post_orchestrate(
    service: Serving, wanted: OrchestrateRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answers 202 when the run is in Redis."""
    return await _started(service, "orchestrate", "orchestrator", wanted, idempotency_key)


@router.get(
    "/{workflow_id}/stream",
    summary="Follow a run's progress (SSE)",
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Progress, until the run ends."},
        204: {"description": "The run has ended and everything was received."},
    },
)
async def stream_progress(service: Serving, workflow_id: RunId, start: Start) -> Response:
    """A message whenever the progress changes; the last one has the output or the error."""
    return await progress_stream(service, workflow_id, start)


async def _started(
    service: Service, path: str, workflow: str, wanted: BaseModel, key: str | None
) -> Response:
    accepted = await submit(
        service,
        Submission(
            route=f"POST /api/v1/workflows/{path}",
            tenant=TENANT,
            workflow=workflow,
            input=wanted.model_dump(),
            key=checked_key(key),
        ),
    )
    body = {"workflow_id": accepted.run_id, "status": "pending"}
    return accepted_response(accepted, f"/api/v1/workflows/{accepted.run_id}", body)


@router.post("/{workflow_id}/input", summary="Answer the one open question of a run")
async def post_workflow_input(
    service: Serving, workflow_id: RunId, answer: InputAnswer
) -> Response:
    """The run as it goes on; 409 when no question is open, or several, which it lists."""
    await answered(service, workflow_id, answer)
    return await show(service, workflow_id)


async def show(service: Service, workflow_id: str) -> Response:
    """A run with the tutorial's field names."""
    async with promptly():
        record = await service.records.get(workflow_id, TENANT)
        steps = await service.journal.steps(workflow_id)
    return json_response(tutorial_view(record, steps))
