"""The scripts: one Lua file per transition, sent by hash; each room has the typed method beside it."""

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from posthouse.storage.connect import available

Argument = str | int | bytes


class Script(StrEnum):
    """Every transition that Redis knows: those of runs, then those of the breakers of endpoints."""

    ACCEPT = "accept"
    CLAIM = "claim"
    HEARTBEAT = "heartbeat"
    START = "start"
    COMMIT = "commit"
    SPAWN = "spawn"
    ASK = "ask"
    ANSWER = "answer"
    RESERVE = "reserve"
    EXTEND = "extend"
    PARK = "park"
    RELEASE = "release"
    FINISH = "finish"
    CANCEL = "cancel"
    ISOLATE = "isolate"
    CRASH = "crash"
    RETRY = "retry"
    DELETE = "delete"
    SWEEP = "sweep"
    DOCTOR = "doctor"
    ADMIT = "admit"
    REPORT = "report"
    SCHEDULE = "schedule"
    UNSCHEDULE = "unschedule"
    FIRE = "fire"
    PACE = "pace"


TAKES_IN = (Script.ACCEPT, Script.RETRY, Script.SCHEDULE, Script.FIRE)
# What several scripts need and most do not.
SHARED = dict.fromkeys((Script.ACCEPT, Script.RETRY, Script.FIRE, Script.SWEEP), "intake")


def source(script: Script) -> str:
    """The whole text that Redis runs: flags, prelude, what it shares with others, and the script's own file.

    Only what takes work in is refused when memory is full; whatever carries work on or ends it must pass, or a full
    Redis could never empty itself.
    """
    folder = resources.files("posthouse.storage") / "lua"
    flags = "#!lua" if script in TAKES_IN else "#!lua flags=allow-oom"
    names = filter(None, ("prelude", "endings", SHARED.get(script), script.value))
    return "\n".join((flags, *((folder / f"{name}.lua").read_text() for name in names)))


def rows(items: Iterable[Sequence[Argument]]) -> list[Argument]:
    """A list of rows as the scripts read it: how many, then their fields one after another."""
    listed = list(items)
    return [len(listed), *(value for row in listed for value in row)]


class Scripts:
    """Runs the scripts on one client. Replies are lists of bytes and integers, as Redis gives them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._texts = {script: source(script) for script in Script}
        self._hashes = {
            script: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for script, text in self._texts.items()
        }

    async def call(self, script: Script, *arguments: Argument) -> list[Any]:
        """The script's reply. Raises StorageUnavailable; the call may or may not have landed then."""
        with available():
            try:
                reply = await self._redis.execute_command(  # type: ignore[no-untyped-call]
                    "EVALSHA", self._hashes[script], 0, *arguments
                )
            except NoScriptError:
                reply = await self._redis.execute_command(  # type: ignore[no-untyped-call]
                    "EVAL", self._texts[script], 0, *arguments
                )
        if not isinstance(reply, list):
            raise TypeError(f"script {script} answered {type(reply).__name__}")
        return reply
