"""A model turn as a step: the request, the text as it comes, what it cost."""

import asyncio
from collections.abc import Callable

import structlog
from pydantic import TypeAdapter

from posthouse.agents.assignment import Assignment, shown_name
from posthouse.agents.conversation import Conversation
from posthouse.agents.decide import TIME_UP, CallTools, NextStep, Repair, decide
from posthouse.agents.deltas import DeltaBatcher
from posthouse.errors import EndpointDown, ModelUnavailable
from posthouse.events.types import (
    Draft,
    MessageCompleted,
    MessageDelta,
    MessageSuperseded,
    ModelRetrying,
    TurnCompleted,
    head,
)
from posthouse.journal.model import Done, Opening, Parked, Step, Usage, Wait
from posthouse.llm.estimate import tokens_of
from posthouse.llm.messages import Completion, ModelRequest, ToolOffer
from posthouse.llm.retry import Retry, RetryingProvider
from posthouse.telemetry import Metrics

# Raise it with every change of what follows from a turn's calls, and keep the former way for former turns.
RULES = 1
COMPLETION: TypeAdapter[Completion] = TypeAdapter(Completion)

_log = structlog.get_logger(__name__)


class ModelTurns:
    """Makes the step of a turn."""

    def __init__(self, provider: RetryingProvider, metrics: Metrics) -> None:
        self._provider = provider
        self._metrics = metrics

    def step(
        self, job: Assignment, talk: Conversation, offers: tuple[ToolOffer, ...]
    ) -> Step[Completion]:
        """The turn that the conversation is at; on its last one the model is offered no tools."""
        key = job.turn_key(talk.state.turn)

        async def work() -> Done[Completion]:
            time_left = job.remaining()
            if not time_left:
                return self._done(job, talk, _unfinished(job, "", 0), Usage())
            request = _request(job, talk, offers, time_left)
            completion = await self._ask(job, request, key)
            usage = self._charge(job, talk, request, completion)
            return self._done(job, talk, completion, usage)

        return Step(
            key=key,
            work=work,
            result=COMPLETION,
            digest=job.digest,
            agent=job.name,
            opening=job.turn_opening(talk.state.turn),
        )

    async def _ask(self, job: Assignment, request: ModelRequest, key: str) -> Completion:
        """The model's answer, or what there is of it when the agent's time is up."""

        def push(delta: MessageDelta) -> None:
            job.steps.push(delta, agent=job.name, step=key)

        deltas = DeltaBatcher(push, job.now)
        started = job.now()
        try:
            async with asyncio.timeout(request.timeout_seconds):
                return await self._provider.complete(
                    request, deltas.add, _announcer(job, key, deltas)
                )
        except TimeoutError:
            pass
        except EndpointDown as down:
            raise Parked((Wait(key, "model", round(down.wait_seconds * 1000)),)) from down
        except ModelUnavailable:
            if job.remaining():
                raise
        finally:
            deltas.flush()
        return _unfinished(job, deltas.text, round((job.now() - started) * 1000))

    def _charge(
        self, job: Assignment, talk: Conversation, request: ModelRequest, completion: Completion
    ) -> Usage:
        tokens = tokens_of(request, completion)
        self._metrics.tokens_used(job.model, tokens.input + tokens.output)
        _log.info(
            "llm_call",
            agent=job.name,
            iteration=talk.state.turn,
            model=completion.model,
            latency_ms=completion.latency_ms,
            prompt_tokens=tokens.input,
            completion_tokens=tokens.output,
            tokens_estimated=completion.tokens is None,
            finish_reason=completion.finish_reason,
        )
        return Usage(model_calls=1, input_tokens=tokens.input, output_tokens=tokens.output)

    def _done(
        self, job: Assignment, talk: Conversation, completion: Completion, usage: Usage
    ) -> Done[Completion]:
        turn = talk.state.turn
        following = decide(completion, talk.state, job.form)
        if not isinstance(following, CallTools | Repair):
            self._metrics.agent_ended(turn)
        judged = completion.model_copy(update={"rules": RULES})
        return Done(judged, usage, _events(job, turn, completion), _opens(job, turn, following))


def _request(
    job: Assignment, talk: Conversation, offers: tuple[ToolOffer, ...], time_left: float
) -> ModelRequest:
    cornered = talk.state.last and bool(offers)
    return ModelRequest(
        model=job.model,
        messages=talk.with_last_turn_notice() if cornered else talk.messages,
        tools=() if cornered else offers,
        shape=job.form.shape if job.form else None,
        temperature=job.agent.spec.temperature,
        timeout_seconds=time_left,
    )


def _unfinished(job: Assignment, text: str, latency_ms: int) -> Completion:
    return Completion(model=job.model, text=text, finish_reason=TIME_UP, latency_ms=latency_ms)


def _announcer(job: Assignment, key: str, deltas: DeltaBatcher) -> Callable[[Retry], None]:
    def announce(retry: Retry) -> None:
        event = ModelRetrying(code=retry.code, attempt=retry.attempt, delay_ms=retry.delay_ms)
        job.steps.announce(job.draft(event, key))
        if deltas.restart():
            job.steps.announce(job.draft(MessageSuperseded(), key))

    return announce


def _opens(job: Assignment, turn: int, following: NextStep) -> tuple[Opening, ...]:
    match following:
        case CallTools(calls):
            # With every call blocked none is made: the ladder's step opens the next turn.
            return tuple(job.call_opening(turn, call) for call in calls)
        case Repair():
            return (job.turn_opening(turn + 1),)
        case _:
            return ()


def _events(job: Assignment, turn: int, completion: Completion) -> tuple[Draft, ...]:
    key = job.turn_key(turn)
    tokens = completion.tokens
    completed = TurnCompleted(
        iteration=turn,
        model=completion.model,
        finish_reason=completion.finish_reason,
        latency_ms=completion.latency_ms,
        prompt_tokens=tokens.input if tokens else None,
        completion_tokens=tokens.output if tokens else None,
        tool_calls=tuple(shown_name(call) for call in completion.tool_calls[:16]),
    )
    if not completion.text:
        return (job.draft(completed, key),)
    message = MessageCompleted(text=head(completion.text), length=len(completion.text))
    return job.draft(message, key), job.draft(completed, key)
