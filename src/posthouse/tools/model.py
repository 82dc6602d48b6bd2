"""What a tool is, what it answers, and what it may use."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from posthouse.inputs.model import OnTimeout, Request
from posthouse.llm.messages import ToolOffer


class Effect(StrEnum):
    """What a call does to the world; says what may happen to it after a crash."""

    READ = "read"
    IDEMPOTENT = "idempotent"
    WRITE = "write"


class InDoubt(StrEnum):
    """What becomes of a writing call that a crash cut, when nobody knows whether it took effect."""

    ASK = "ask"
    FAIL = "fail"
    REPEAT = "repeat"


@dataclass(frozen=True)
class Approval:
    """How a person is asked before a call is made: for as long as it takes, or `expires_seconds` and what follows."""

    expires_seconds: float | None = None
    on_timeout: OnTimeout = OnTimeout.WAIT


class Source(BaseModel):
    """A document that a tool really read."""

    model_config = ConfigDict(frozen=True)

    address: str
    title: str


class Page(BaseModel):
    """The readable text of one document."""

    model_config = ConfigDict(frozen=True)

    address: str
    title: str
    text: str


class SearchHit(BaseModel):
    """One search result: where it is, what it is called, and a passage of it."""

    model_config = ConfigDict(frozen=True)

    title: str
    url: str
    snippet: str


class SearchProvider(Protocol):
    """Something that finds documents."""

    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        """At most `limit` documents, best first. Raises ToolFailed."""
        ...


class PageReader(Protocol):
    """Something that reads documents by address."""

    async def read(self, address: str) -> Page:
        """The document's text. Raises ToolFailed: unknown, forbidden, too large, too slow, unreadable."""
        ...


@dataclass(frozen=True)
class Resources:
    """What tools share in one worker process."""

    search: SearchProvider
    pages: PageReader


@dataclass(frozen=True)
class ToolContext:
    """What one call may know: its run, its step, and a key that stays the same when the call is repeated."""

    run_id: str
    step: str
    idempotency_key: str
    resources: Resources


class ToolProblem(BaseModel):
    """Why a call failed, as the model is told: `error` is timeout, http_error, invalid_arguments, unexpected, ..."""

    model_config = ConfigDict(frozen=True)

    error: str
    message: str
    retryable: bool = False
    status_code: int | None = None


class ToolAnswer(BaseModel):
    """What the model is told (`text`), what went wrong if anything, and which documents were read.

    Unless it is `trusted`, the model is told that the text came from outside. `mistaken` is said by whoever looked at
    the call before it was made: all that it tells is what was wrong there, in no words from outside.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    problem: ToolProblem | None = None
    sources: tuple[Source, ...] = ()
    trusted: bool = False
    mistaken: bool = False


@dataclass(frozen=True)
class Tool:
    """One tool: how the model sees it, and how a call of it is made.

    `call` takes the model's own argument text, validates it, and never raises but for cancellation: every
    failure is an answer with a problem. Timeout in seconds for each try, `max_result_bytes` in bytes of UTF-8;
    `concurrency` is how many calls one worker process may make at the same time, None for any number.
    `check` says what is wrong with an argument text, None when nothing is. With an `approval` a person is asked
    before each call; a tool that writes asks too once its agent has read text from outside, unless
    `approve_after_outside` is false. With a `question` no call is made at all: a person's answer is the result.
    """

    offer: ToolOffer
    effect: Effect
    timeout_seconds: float
    max_result_bytes: int
    call: Callable[[ToolContext, str], Awaitable[ToolAnswer]]
    concurrency: int | None = None
    in_doubt: InDoubt = InDoubt.ASK
    check: Callable[[str], ToolAnswer | None] | None = None
    approval: Approval | None = None
    approve_after_outside: bool = True
    question: Callable[[Mapping[str, Any]], Request] | None = None

    @property
    def name(self) -> str:
        """The name that the model calls it by."""
        return self.offer.name
