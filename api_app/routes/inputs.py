"""Questions to people: list what is open, look at one, answer."""

from fastapi import APIRouter, Response

from api_app.inputs import InputAnswer, input_view
from api_app.names import InputId, RunId, is_input_id
from api_app.routes.runs import Limit
from api_app.service import TENANT, Service, Serving, invalid, json_response, promptly
from posthouse.inputs.model import Kind
from posthouse.inputs.store import InputRequest, Page, Sought, State

router = APIRouter(tags=["inputs"])


@router.get("/inputs", summary="List what people are asked, the oldest run's questions first")
async def get_inputs(
    service: Serving,
    kind: Kind | None = None,
    run_id: RunId | None = None,
    limit: Limit = 20,
    cursor: InputId | None = None,
) -> Response:
    """A page of open questions of all runs, or of one and all below it; `next_cursor` is null at the end."""
    if cursor is not None and not is_input_id(cursor):
        raise invalid("query.cursor", "must be the next_cursor of another page")
    sought = Sought(kind, limit, cursor)
    async with promptly():
        if run_id is None:
            page = await service.inputs.page(TENANT, sought)
        else:
            page = await _of_a_run(service, run_id, sought)
    inputs = [input_view(asked) for asked in page.inputs]
    return json_response({"inputs": inputs, "next_cursor": page.cursor})


async def _of_a_run(service: Service, run_id: str, sought: Sought) -> Page:
    record = await service.records.get(run_id, TENANT)
    ids = await service.inputs.open_ids(record.run_id, record.root)
    left = [one for one in ids if sought.cursor is None or one > sought.cursor]
    found: list[InputRequest] = [
        asked
        for asked in await service.inputs.several(left, TENANT)
        if asked.state is State.OPEN and sought.kind in (None, asked.request.kind)
    ]
    more = len(found) > sought.limit
    page = found[: sought.limit]
    return Page(tuple(page), page[-1].input_id if more else None)


@router.get("/inputs/{input_id}", summary="Look at a question")
async def get_input(service: Serving, input_id: InputId) -> Response:
    """What is asked, what may be said, and what was said."""
    async with promptly():
        asked = await service.inputs.get(input_id, TENANT)
    return json_response(input_view(asked))


@router.post("/inputs/{input_id}", summary="Answer a question")
async def post_input(service: Serving, input_id: InputId, answer: InputAnswer) -> Response:
    """200 when the answer is in Redis, also the same one again; 409 answered otherwise, 410 expired, 422 unfit."""
    async with promptly():
        asked = await service.replies.answer(input_id, TENANT, answer.reply())
    return json_response(input_view(asked))


@router.post("/runs/{run_id}/input", summary="Answer the one open question of a run")
async def post_run_input(service: Serving, run_id: RunId, answer: InputAnswer) -> Response:
    """The same for a run and all below it; 409 when no question is open, or several, which it lists."""
    return json_response(input_view(await answered(service, run_id, answer)))


async def answered(service: Service, run_id: str, answer: InputAnswer) -> InputRequest:
    """The question that was open, with its answer."""
    async with promptly():
        record = await service.records.get(run_id, TENANT)
        return await service.replies.answer_run(record, TENANT, answer.reply())
