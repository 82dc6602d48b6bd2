"""What a caller may do to a run: end it, or let it be tried again."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from api_app.names import RunId
from api_app.routes.runs import shown
from api_app.schemas import RetryRequest
from api_app.service import TENANT, Serving, promptly
from posthouse.control.retrying import RETRYABLE, Again
from posthouse.errors import RunCode

router = APIRouter(prefix="/runs", tags=["runs"])

_AS_IT_IS = RetryRequest()


@router.post("/{run_id}/cancel", summary="Cancel a run")
async def cancel_run(service: Serving, run_id: RunId) -> Response:
    """Ends the run at once; 409 when it has ended in another way. Its worker drops the call in flight."""
    async with promptly():
        if await service.transitions.cancel(run_id, TENANT):
            service.metrics.run_cancelled()
        return await shown(service, run_id)


@router.post("/{run_id}/retry", status_code=202, summary="Try an ended run again")
async def retry_run(
    service: Serving, run_id: RunId, wanted: Annotated[RetryRequest, Body()] = _AS_IT_IS
) -> Response:
    """Steps and subtasks that failed are done again, finished ones are kept; 409 for a live or completed run.

    What the budget stopped is asked for anew in a run that ended there, or is given another one. 429 where a new run
    would be refused; the run stays as it was.
    """
    async with promptly():
        record = await service.records.get(run_id, TENANT)
        again = Again(steps=())
        if record.status in RETRYABLE and record.parent is None:
            stopped = record.error is not None and record.error.code == RunCode.BUDGET_EXCEEDED
            afresh = stopped or wanted.budget is not None
            again = await service.retries.of(run_id, wanted.from_step, afresh=afresh)
        limits = wanted.budget.changes() if wanted.budget else []
        await service.transitions.retry(
            run_id, TENANT, record.seq, again.steps, again.children, limits
        )
        return await shown(service, run_id, 202, Location=f"/api/v1/runs/{run_id}")
