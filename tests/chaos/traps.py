"""Scripts with a trap: the process stops, dies or gets an error at one exact call, before or after it took effect."""

import os
import signal
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from redis.asyncio import Redis

from posthouse.errors import StorageUnavailable
from posthouse.storage.scripts import Argument, Script, Scripts

When = Literal["before", "after"]
How = Literal["SIGKILL", "SIGSTOP", "error"]


@dataclass(frozen=True)
class Trap:
    """Springs at the n-th call (from 1) of that name, or of any name when it is ""; at 0 it only counts."""

    name: str
    call: int
    when: When
    how: How

    def text(self) -> str:
        """As it is handed to a worker's environment."""
        return orjson.dumps(asdict(self)).decode()


class TrappedScripts(Scripts):
    """The scripts, counted; `sprung` is a file that is written just before the trap springs."""

    def __init__(self, redis: Redis, trap: Trap, sprung: Path) -> None:
        super().__init__(redis)
        self._trap = trap
        self._sprung = sprung
        self._calls = 0
        self._counts: Counter[str] = Counter()
        self._children: set[Argument] = set()

    async def call(self, script: Script, *arguments: Argument) -> list[Any]:
        """The script's reply, unless the trap springs."""
        name = self._name_of(script, arguments)
        self._counts[name] += 1
        if self._trap.call == 0:
            self._tell_counts()
        due = self._due(name)
        if due and self._trap.when == "before":
            self._spring()
        reply = await super().call(script, *arguments)
        if due and self._trap.when == "after":
            self._spring()
        return reply

    def _tell_counts(self) -> None:
        # In one move: this process is killed at any moment once the run has ended.
        fresh = self._sprung.with_suffix(".fresh")
        fresh.write_bytes(orjson.dumps(self._counts))
        fresh.replace(self._sprung)

    def _name_of(self, script: Script, arguments: tuple[Argument, ...]) -> str:
        """The script's; of a park also what for, of an end whether it is one that a parent waits for."""
        match script, arguments:
            case Script.SPAWN, (_, _, _, _, child, *_):
                self._children.add(child)
            case Script.PARK, (_, _, _, _, _, str(reason), *_):
                return f"park for {reason}"
            case Script.FINISH, (run, *_) if run in self._children:
                return "finish of a child"
        return script.value

    def _due(self, name: str) -> bool:
        if self._trap.name not in ("", name):
            return False
        self._calls += 1
        return self._calls == self._trap.call

    def _spring(self) -> None:
        self._sprung.write_text(str(os.getpid()))
        if self._trap.how == "error":
            raise StorageUnavailable("the trap has sprung")
        os.kill(os.getpid(), getattr(signal, self._trap.how))


def trapped(redis: Redis) -> Scripts:
    """The scripts that the environment asks for: CHAOS_TRAP and CHAOS_SPRUNG."""
    text = os.environ.get("CHAOS_TRAP")
    if not text:
        return Scripts(redis)
    return TrappedScripts(redis, Trap(**orjson.loads(text)), Path(os.environ["CHAOS_SPRUNG"]))
