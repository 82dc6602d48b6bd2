"""Tasks that must end: a cancellation that was swallowed on its way is sent again."""

import asyncio
from collections.abc import Collection
from typing import Any


async def ended(tasks: Collection["asyncio.Task[Any]"], *, patience: float = 0.2) -> None:
    """Cancels the tasks and returns when all have ended, whatever they raise.

    A connection that is checked for being alive just as its user is cancelled can lose the cancellation (seen),
    so it is sent again every `patience` seconds.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=patience)
