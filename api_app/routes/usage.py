"""What a run took: tokens, money, calls; by agent, model and subtask."""

from fastapi import APIRouter, Response

from api_app.money import account_view
from api_app.names import RunId
from api_app.service import TENANT, Serving, json_response, promptly

router = APIRouter(prefix="/runs", tags=["runs"])


@router.get("/{run_id}/usage", summary="Look at what a run took")
async def get_usage(service: Serving, run_id: RunId) -> Response:
    """The run with all below it, from their journals; the budget is that of its whole tree."""
    async with promptly():
        record = await service.records.get(run_id, TENANT)
        account = await service.accounts.of(record)
        budget = await service.ledger.of(record.root) if record.budget else None
    return json_response(account_view(record.run_id, account, budget))
