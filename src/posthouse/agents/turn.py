"""A model turn as a step: the request, the text as it comes, what it cost."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeVar

import structlog
from pydantic import TypeAdapter

from posthouse.agents.approval import Approvals
from posthouse.agents.assignment import Assignment, shown_name
from posthouse.agents.conversation import Conversation
from posthouse.agents.decide import OVER_BUDGET, TIME_UP, CallTools, NextStep, Repair, decide
from posthouse.agents.narrator import Answer, Narrator
from posthouse.agents.spending import Cheaper, OverBudget, Tab, Till, Tries
from posthouse.agents.summary import SUMMARY, Summary, summary_in, unheard
from posthouse.agents.window import Older
from posthouse.errors import (
    ContentRefused,
    EndpointDown,
    ModelUnavailable,
    RateLimited,
    RunCode,
    RunFailed,
)
from posthouse.events.types import (
    Draft,
    MessageCompleted,
    TurnCompleted,
    head,
)
from posthouse.journal.model import Done, Opening, Parked, Step, Usage, Wait
from posthouse.llm.estimate import tokens_of
from posthouse.llm.messages import Completion, ModelRequest, ToolOffer
from posthouse.llm.routed import Hooks, Routed
from posthouse.llm.router import SkipCandidate
from posthouse.telemetry import Metrics

# Raise it with every change of what follows from a turn's calls, and keep the former way for former turns.
RULES = 1
COMPLETION: TypeAdapter[Completion] = TypeAdapter(Completion)
T = TypeVar("T")

_log = structlog.get_logger(__name__)


class ModelTurns:
    """Makes the step of a turn."""

    def __init__(self, models: Routed, metrics: Metrics, till: Till, approvals: Approvals) -> None:
        self._models = models
        self._metrics = metrics
        self._till = till
        self._approvals = approvals

    def step(
        self, job: Assignment, talk: Conversation, offers: tuple[ToolOffer, ...]
    ) -> Step[Completion]:
        """The turn that the conversation is at; on its last one the model is offered no tools."""
        key = job.turn_key(talk.state.turn)
        tab = Tab(self._till, self._models, job, key)

        async def work() -> Done[Completion]:
            time_left = job.remaining()
            if not time_left:
                return self._done(job, talk, Answer(_unfinished(job, "", 0)), {})
            request = _request(job, talk, offers, time_left)
            answer = await self._ask(job, request, tab)
            return self._done(job, talk, answer, self._charge(job, talk, request, answer, tab))

        return Step(
            key=key,
            work=work,
            result=COMPLETION,
            digest=job.digest,
            agent=job.name,
            opening=job.turn_opening(talk.state.turn),
            spent=tab.spent,
        )

    def summary_step(self, job: Assignment, talk: Conversation, past: Older) -> Step[Summary]:
        """The summary of older turns, asked for before the turn at hand; that there is none is recorded too."""
        key = f"{job.turn_key(talk.state.turn)}/summary"
        quiet = unheard(job)
        tab = Tab(self._till, self._models, quiet, key)

        async def work() -> Done[Summary]:
            time_left = job.remaining()
            if not time_left:
                return Done(Summary(failure=RunCode.TIMEOUT))
            request = _summary_request(job, past, time_left)
            try:
                answer = await self._ask(quiet, request, tab)
            except (ModelUnavailable, ContentRefused) as failure:
                return _billed(Summary(failure=failure.code), tab.spent())
            took = self._charge(job, talk, request, answer, tab)
            return replace(_billed(summary_in(answer.completion), took), events=answer.events)

        return Step(
            key=key, work=work, result=SUMMARY, digest=job.digest, agent=job.name, spent=tab.spent
        )

    async def _ask(self, job: Assignment, request: ModelRequest, tab: Tab) -> Answer:
        """The model's answer, what there is of it when the agent's time is up, or that the budget is spent."""
        narrator = Narrator(job, tab.key)
        tries = Tries(tab, narrator, request)
        started = job.now()
        try:
            async with asyncio.timeout(request.timeout_seconds):
                return narrator.answer(await self._completion(request, tab, tries.hooks()))
        except TimeoutError:
            pass
        except OverBudget as over:
            return narrator.answer(_not_sent(job, over))
        except EndpointDown as down:
            narrator.told()
            tries.failed()
            await tab.let_go()
            raise Parked((_wait_for(tab.key, down),)) from down
        except ModelUnavailable:
            narrator.told()
            if job.remaining():
                tries.failed()
                raise
        except RunFailed as error:
            narrator.told()
            tries.failed(refused=isinstance(error, ContentRefused))
            raise
        finally:
            narrator.flush()
        latency_ms = round((job.now() - started) * 1000)
        unfinished = _unfinished(job, narrator.text, latency_ms, narrator.beside)
        return narrator.answer(unfinished)

    async def _completion(self, request: ModelRequest, tab: Tab, hooks: Hooks) -> Completion:
        while True:
            try:
                return await self._models.complete(request, tab.wanted, hooks)
            except Cheaper:
                continue
            except SkipCandidate:
                await tab.skipped()
                raise

    def _charge(
        self,
        job: Assignment,
        talk: Conversation,
        request: ModelRequest,
        answer: Answer,
        tab: Tab,
    ) -> Mapping[str, Usage]:
        """What the request took, by model."""
        completion, choice = answer.completion, answer.choice
        if choice is None or completion.finish_reason == OVER_BUDGET:
            return tab.spent()
        tokens, label = tokens_of(request, completion), self._models.label(choice)
        took = tab.took(request, completion, choice)
        self._metrics.tokens_used(label, tokens.input + tokens.output)
        self._metrics.model_cost(label, sum(usage.nano_usd for usage in took.values()))
        _log.info(
            "llm_call",
            agent=job.name,
            iteration=talk.state.turn,
            model=completion.model,
            provider=completion.provider,
            latency_ms=completion.latency_ms,
            prompt_tokens=tokens.input,
            completion_tokens=tokens.output,
            tokens_estimated=completion.tokens is None,
            finish_reason=completion.finish_reason,
        )
        return took

    def _done(
        self, job: Assignment, talk: Conversation, answer: Answer, took: Mapping[str, Usage]
    ) -> Done[Completion]:
        turn, completion = talk.state.turn, answer.completion
        following = decide(completion, talk.state, job.form)
        if not isinstance(following, CallTools | Repair):
            self._metrics.agent_ended(turn)
        asks: tuple[str, ...] = ()
        unfit: tuple[str, ...] = ()
        if isinstance(following, CallTools):
            asks = self._approvals.first(job, following.calls, outside=talk.outside)
            unfit = self._approvals.unfit(job, following.calls, outside=talk.outside)
        # Recorded, so that a replay asks about these calls and no others, whatever has become of the tools.
        judged = completion.model_copy(update={"rules": RULES, "asks": asks, "unfit": unfit})
        events = (*answer.events, *_events(job, turn, completion))
        opens = _opens(job, turn, following, asks)
        return replace(_billed(judged, took), events=events, opens=opens)


def _billed(value: T, took: Mapping[str, Usage]) -> Done[T]:
    return Done(value, sum(took.values(), Usage()), by_model=took)


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
        max_output_tokens=job.agent.spec.max_output_tokens,
        timeout_seconds=time_left,
    )


def _summary_request(job: Assignment, past: Older, time_left: float) -> ModelRequest:
    return ModelRequest(
        model=job.model,
        messages=past.messages,
        temperature=job.agent.spec.temperature,
        timeout_seconds=time_left,
    )


def _unfinished(job: Assignment, text: str, latency_ms: int, beside: int = 0) -> Completion:
    return Completion(
        model=job.model,
        text=text,
        finish_reason=TIME_UP,
        latency_ms=latency_ms,
        withheld=beside,
    )


def _not_sent(job: Assignment, over: OverBudget) -> Completion:
    return Completion(
        model=job.model, text="", finish_reason=OVER_BUDGET, latency_ms=0, limit=over.limit
    )


def _wait_for(key: str, down: EndpointDown) -> Wait:
    kind: Literal["rate_limit", "model"] = (
        "rate_limit" if isinstance(down, RateLimited) else "model"
    )
    return Wait(key, kind, round(down.wait_seconds * 1000))


def _opens(
    job: Assignment, turn: int, following: NextStep, asks: tuple[str, ...]
) -> tuple[Opening, ...]:
    match following:
        case CallTools(calls):
            # With every call blocked none is made: the ladder's step opens the next turn.
            return tuple(job.call_opening(turn, call) for call in calls if call.id not in asks)
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
