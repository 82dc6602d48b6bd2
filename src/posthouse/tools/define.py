"""The `@tool` decorator: a typed async function becomes something that a model can call."""

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import overload

import docstring_parser
import structlog

from posthouse.errors import ConfigurationError, ToolFailed
from posthouse.inputs.model import OnTimeout
from posthouse.llm.messages import ToolOffer
from posthouse.registry import checked_name
from posthouse.tools.answer import answered, failed, failed_by, mistaken
from posthouse.tools.arguments import Arguments, ArgumentsRefused, Function, arguments_of
from posthouse.tools.attempts import with_retries
from posthouse.tools.model import Approval, Effect, InDoubt, Tool, ToolAnswer, ToolContext

MIN_RESULT_BYTES = 100

log = structlog.get_logger()


@overload
def tool(function: Function, /) -> Tool: ...


@overload
def tool(
    *,
    effect: Effect = Effect.READ,
    timeout_seconds: float = 30.0,
    max_result_bytes: int = 32 * 1024,
    trusted: bool = False,
    retries: int = 0,
    concurrency: int | None = None,
    in_doubt: InDoubt = InDoubt.ASK,
    requires_approval: bool | Approval = False,
    approve_after_outside: bool = True,
) -> Callable[[Function], Tool]: ...


def tool(
    function: Function | None = None,
    /,
    *,
    effect: Effect = Effect.READ,
    timeout_seconds: float = 30.0,
    max_result_bytes: int = 32 * 1024,
    trusted: bool = False,
    retries: int = 0,
    concurrency: int | None = None,
    in_doubt: InDoubt = InDoubt.ASK,
    requires_approval: bool | Approval = False,
    approve_after_outside: bool = True,
) -> Tool | Callable[[Function], Tool]:
    """Makes a Tool of a typed async function; its docstring tells the model what everything is for.

    A first parameter annotated ToolContext gets the call's context and is not shown to the model.
    Unless it is `trusted`, its text is marked as data from outside. A call that failed in a passing
    way is made up to `retries` times more, each try with the whole `timeout_seconds`; `concurrency`
    calls may run at the same time in one worker process. When a crash cut a call that writes,
    `in_doubt` says whether a person is asked, or it is made again (its idempotency key stays the same), or
    answered as a failure. With `requires_approval` a person sees the arguments of each call before it is made.
    A tool that writes is also asked about once its agent has read text from outside, unless
    `approve_after_outside` is false.
    Raises ConfigurationError when the function cannot be offered to a model.
    """
    approval = Approval() if requires_approval is True else requires_approval or None
    terms = _Terms(
        *(effect, timeout_seconds, max_result_bytes, trusted, retries, concurrency, in_doubt),
        *(approval, approve_after_outside),
    )
    return terms.tool_of if function is None else terms.tool_of(function)


@dataclass(frozen=True)
class _Terms:
    """What a decorator was told."""

    effect: Effect
    timeout_seconds: float
    max_result_bytes: int
    trusted: bool
    retries: int
    concurrency: int | None
    in_doubt: InDoubt
    approval: Approval | None
    approve_after_outside: bool

    def tool_of(self, function: Function) -> Tool:
        name = _checked_name(function)
        if wrong := next(self._wrong(), None):
            raise ConfigurationError(f"tool {name!r}: {wrong}")
        description, texts = _documented(name, function)
        takes_context, arguments = arguments_of(name, function, texts)
        body = _Body(name, function, takes_context, arguments, self)
        offer = ToolOffer(name=name, description=description, parameters=arguments.schema)
        return Tool(
            offer,
            self.effect,
            self.timeout_seconds,
            self.max_result_bytes,
            body.call,
            self.concurrency,
            self.in_doubt,
            body.check,
            self.approval,
            self.approve_after_outside,
        )

    def _wrong(self) -> Iterator[str]:
        if not (math.isfinite(self.timeout_seconds) and self.timeout_seconds > 0):
            yield f"timeout_seconds must be above 0, not {self.timeout_seconds}"
        if self.max_result_bytes < MIN_RESULT_BYTES:
            least = f"at least {MIN_RESULT_BYTES}"
            yield f"max_result_bytes must be {least}, not {self.max_result_bytes}"
        if self.retries < 0:
            yield f"retries must be 0 or more, not {self.retries}"
        if self.retries and self.effect is Effect.WRITE:
            yield "a call that writes is never made again by itself; take retries out"
        if self.concurrency is not None and self.concurrency < 1:
            yield f"concurrency must be at least 1, not {self.concurrency}"
        if self.approval is not None:
            yield from _wrong_approval(self.approval)


@dataclass(frozen=True)
class _Body:
    """A tool's function behind the validation, the limits and the answers."""

    name: str
    function: Function
    takes_context: bool
    arguments: Arguments
    terms: _Terms

    def check(self, text: str) -> ToolAnswer | None:
        """What is wrong with the arguments, as the model is told; None when nothing is."""
        try:
            self.arguments.parse(text)
        except ArgumentsRefused as error:
            return mistaken("invalid_arguments", str(error))
        except Exception:
            log.exception("tool_call_broke", tool=self.name)
            return failed("unexpected", "the tool failed")
        return None

    async def call(self, context: ToolContext, text: str) -> ToolAnswer:
        async def attempt() -> ToolAnswer:
            return await self._attempt(context, text)

        return await with_retries(attempt, self.terms.retries)

    async def _attempt(self, context: ToolContext, text: str) -> ToolAnswer:
        leading = (context,) if self.takes_context else ()
        limits = asyncio.timeout(self.terms.timeout_seconds)
        try:
            values = self.arguments.parse(text)
            async with limits:
                result = await self.function(*leading, **values)
            answer = answered(result, self.terms.max_result_bytes)
        except ArgumentsRefused as error:
            return mistaken("invalid_arguments", str(error))
        except ToolFailed as error:
            return failed_by(error)
        except TimeoutError:
            after = f" after {self.terms.timeout_seconds:g} s" if limits.expired() else ""
            if self.terms.effect is Effect.WRITE:
                return failed("timeout", f"the tool timed out{after}; it may have taken effect")
            return failed("timeout", f"the tool timed out{after}", retryable=True)
        except Exception:
            log.exception("tool_call_broke", tool=self.name)
            return failed("unexpected", "the tool failed")
        ours = self.terms.trusted and answer.problem is None
        return answer.model_copy(update={"trusted": True}) if ours else answer


def _wrong_approval(approval: Approval) -> Iterator[str]:
    seconds, then = approval.expires_seconds, approval.on_timeout
    if then is OnTimeout.DEFAULT:
        yield "an approval has no default; take wait, reject or fail"
    if (seconds is None) != (then is OnTimeout.WAIT):
        yield "an approval that expires says what follows (reject or fail), and only such a one"
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        yield f"expires_seconds must be above 0, not {seconds}"


def _checked_name(function: Function) -> str:
    name = getattr(function, "__name__", "")
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"tool {name!r} must be an async function")
    return checked_name("tool", name)


def _documented(name: str, function: Function) -> tuple[str, dict[str, str]]:
    """What the docstring says of the tool, and of its arguments by name."""
    try:
        parsed = docstring_parser.parse(inspect.getdoc(function) or "")
    except docstring_parser.ParseError:
        raise ConfigurationError(f"tool {name!r}: its docstring cannot be read") from None
    if not parsed.description:
        raise ConfigurationError(f"tool {name!r}: its docstring must say what it is for")
    return parsed.description, {
        entry.arg_name: " ".join((entry.description or "").split()) for entry in parsed.params
    }
