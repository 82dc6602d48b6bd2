"""The fleet: the queue, the workers, the runs that were given up."""

from fastapi import APIRouter, Response

from api_app.routes.runs import Limit
from api_app.schemas import summary_view, worker_view
from api_app.service import TENANT, Serving, invalid, json_response, promptly
from posthouse.ids import is_ulid

router = APIRouter(tags=["fleet"])


@router.get("/queue", summary="Look at the queue")
async def get_queue(service: Serving) -> Response:
    """How many runs wait to begin or to go on, how long the first one has waited, how fast they are taken."""
    async with promptly():
        state = await service.fleet.queue()
    return json_response(vars(state))


@router.get("/workers", summary="Look at the workers")
async def get_workers(service: Serving) -> Response:
    """Every worker heard of within the last minute; one that is not `alive` missed its heartbeats."""
    async with promptly():
        workers = await service.fleet.workers()
    return json_response({"workers": [worker_view(worker) for worker in workers]})


@router.get("/dead-letters", summary="List runs that were given up")
async def get_dead_letters(
    service: Serving, limit: Limit = 20, cursor: str | None = None
) -> Response:
    """Failed runs that ended every process that worked on them, newest first; POST /runs/{id}/retry tries again."""
    if cursor is not None and not is_ulid(cursor):
        raise invalid("query.cursor", "must be the next_cursor of another page")
    async with promptly():
        listing = await service.records.dead(TENANT, limit, cursor)
    runs = [summary_view(record) for record in listing.runs]
    return json_response({"runs": runs, "next_cursor": listing.cursor})
