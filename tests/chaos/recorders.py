"""The tool server and the model server: they answer by rule, and keep logs of their own."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

from posthouse.embedded.standin.decide import Answer, Calls, Text
from posthouse.embedded.standin.wire import Envelope, Usage, streamed
from posthouse.llm.messages import ToolCall


@dataclass(frozen=True)
class ToolCallSeen:
    """One call as the tool server saw it: whose, of which process, when it came (ms since 1970)."""

    run: str
    step: str
    key: str
    pid: int
    at: float
    body: str


@dataclass(frozen=True)
class ModelCallSeen:
    """One request as the model server saw it; `turn` from 1."""

    run: str
    turn: int
    at: float


class ToolServer:
    """Answers with a value that follows from the seed and the step; one effect for each key."""

    def __init__(self) -> None:
        self.log: list[ToolCallSeen] = []
        self.effects: dict[str, str] = {}
        self.arrived = asyncio.Condition()

    async def handle(self, call: dict[str, Any]) -> bytes:
        """Writes the call down before anything else."""
        body = orjson.dumps({**call, "pid": 0}, option=orjson.OPT_SORT_KEYS).decode()
        now = time.time() * 1000
        self.log.append(
            ToolCallSeen(call["run"], call["step"], call["key"], call["pid"], now, body)
        )
        value = self.effects.setdefault(call["key"], value_of(call["seed"], call["step"]))
        async with self.arrived:
            self.arrived.notify_all()
        await asyncio.sleep(call["pace_ms"] / 1000)
        return orjson.dumps({"value": value})


class ModelServer:
    """Speaks the OpenAI chat protocol: first a call of a tool, then the answer."""

    def __init__(self, pace_ms: int = 50) -> None:
        self.log: list[ModelCallSeen] = []
        self._pace = pace_ms / 1000

    async def handle(self, request: dict[str, Any]) -> AsyncIterator[bytes]:
        """A streamed completion."""
        messages = request["messages"]
        words = str(next(m["content"] for m in messages if m["role"] == "user")).split()
        run, seed = words[1:3]
        turn = 1 + sum(message["role"] == "assistant" for message in messages)
        self.log.append(ModelCallSeen(run, turn, time.time() * 1000))
        call = ToolCall(id=f"call_{turn}", name="search_web", arguments='{"query":"lease"}')
        answer: Answer = Calls((call,)) if turn == 1 else Text(said_of(int(seed)))
        reason = "tool_calls" if turn == 1 else "stop"
        envelope = Envelope(f"chatcmpl-{run}-{turn}", int(time.time()), request["model"])
        stream = streamed(answer, reason, envelope, Usage(10, 5))
        return self._pieces((stream.opening, *stream.pieces, stream.closing))

    async def _pieces(self, pieces: tuple[bytes, ...]) -> AsyncIterator[bytes]:
        for piece in pieces:
            await asyncio.sleep(self._pace / len(pieces))
            yield piece


def value_of(seed: int, step: str) -> str:
    """What the tool server answers."""
    return hashlib.sha256(f"{seed}/{step}".encode()).hexdigest()[:12]


def said_of(seed: int) -> str:
    """What the model says in the end."""
    return f"The errand {seed} is done."


@dataclass(frozen=True)
class Order:
    """An errand as it is submitted; the fields are those of its input."""

    workflow: ClassVar[str] = "errand"

    seed: int
    legs: int = 4
    width: int = 3
    pace_ms: int = 50
    nap_ms: int = 200
    agent: bool = True

    @property
    def steps(self) -> int:
        """How many steps are journalled when it is done."""
        naps = self.legs // 2 if self.nap_ms else 0
        return self.legs * (self.width + 3) + naps + (3 if self.agent else 0)

    @property
    def agents(self) -> int:
        """How many agents work in it."""
        return int(self.agent)

    @property
    def output(self) -> dict[str, object]:
        """What it must come to, worked out without the service."""
        found = []
        for leg in range(self.legs):
            names = ["go", *(f"branch:{number}" for number in range(self.width)), "back"]
            found += [value_of(self.seed, f"leg:{leg}/{name}") for name in names]
        if self.agent:
            found.append(said_of(self.seed))
        checksum = hashlib.sha256("\n".join(found).encode()).hexdigest()
        return {"checksum": checksum, "steps": len(found)}
