"""The progress of a run as the tutorial streams it: one message whenever it changes."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from api_app.schemas import TUTORIAL_STATUS, tutorial_error
from posthouse.events.log import Logged
from posthouse.events.reader import Item
from posthouse.events.types import TERMINAL_TYPES
from posthouse.runs.model import RunRecord, Status

STATUS_AFTER = {
    "run.created": Status.PENDING,
    "run.retried": Status.PENDING,
    "run.started": Status.RUNNING,
    "run.resumed": Status.RUNNING,
}
STEP_TYPES = frozenset({"turn.completed", "tool.completed", "tool.failed"})
_SHOWN = ("iteration", "model", "tool", "duration_ms", "latency_ms", "error", "message")


class ProgressFrames:
    """Frames with an id and no event name, of what follows `after`; the whole log must go through.

    `record` gives the run's record, for the output that goes with the last message.
    """

    def __init__(self, run_id: str, after: int, record: Callable[[], Awaitable[RunRecord]]) -> None:
        self._run_id = run_id
        self._after = after
        self._record = record
        self._status = Status.PENDING
        self._steps = 0
        self._latest: dict[str, Any] | None = None

    async def __call__(self, items: Sequence[Item]) -> bytes:
        """The frames of what the items change. Raises StorageUnavailable."""
        frames = [
            await self._frame(item)
            for item in items
            if isinstance(item, Logged) and self._changed_by(item) and item.seq > self._after
        ]
        return b"".join(frames)

    def _changed_by(self, item: Logged) -> bool:
        if item.run_id != self._run_id:
            return False
        if item.type in STEP_TYPES:
            self._steps += 1
            self._latest = _step(item)
        elif item.type in TERMINAL_TYPES:
            self._status = Status(item.type.removeprefix("run."))
        elif item.type in STATUS_AFTER:
            self._status = STATUS_AFTER[item.type]
        elif item.type == "run.waiting" and _waits_for_a_person(item):
            self._status = Status.AWAITING_INPUT
        else:
            return False
        return True

    async def _frame(self, item: Logged) -> bytes:
        message: dict[str, Any] = {
            "workflow_id": self._run_id,
            "status": TUTORIAL_STATUS[self._status],
            "steps_count": self._steps,
            "latest_step": self._latest,
        }
        if item.type in TERMINAL_TYPES:
            message |= _ending(await self._record(), item.seq)
        return b"id: %d\ndata: %b\n\n" % (item.seq, orjson.dumps(message))


def _waits_for_a_person(item: Logged) -> bool:
    return bool(orjson.loads(item.envelope)["data"].get("wait_reason") == "input")


def _step(item: Logged) -> dict[str, Any]:
    envelope = orjson.loads(item.envelope)
    data = envelope["data"]
    shown = {name: data[name] for name in _SHOWN if name in data}
    return {
        "step": envelope.get("step"),
        "agent": envelope.get("agent"),
        "type": item.type,
        **shown,
    }


def _ending(record: RunRecord, seq: int) -> dict[str, Any]:
    """What a run came to by the event of this seq; nothing when it was retried since."""
    if not record.terminal or record.seq != seq:
        return {}
    error = tutorial_error(record)
    return {"output": record.output} if error is None else {"error": error}
