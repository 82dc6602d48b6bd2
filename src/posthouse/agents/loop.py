"""The agent loop: a model turn, a decision, tool calls, until there is an answer or a limit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from pydantic import BaseModel

from posthouse import clock
from posthouse.agents.approval import Approvals
from posthouse.agents.assignment import Assignment
from posthouse.agents.calls import Asked, ToolCalls, call_blocked, too_many
from posthouse.agents.conversation import LAST_TURN, Answered, Conversation, is_refused
from posthouse.agents.decide import (
    CallTools,
    FinalAnswer,
    Overspent,
    Refused,
    Repair,
    Stalled,
    TimeUp,
    TurnLimit,
    Unusable,
    decide,
)
from posthouse.agents.form import form_of
from posthouse.agents.spec import Agent
from posthouse.agents.spending import Till, more
from posthouse.agents.turn import ModelTurns
from posthouse.errors import ConfigurationError, ContentRefused, InvalidOutput, RunCode
from posthouse.journal.model import AgentAnswer, Opening, Steps, digest_of
from posthouse.llm.messages import Completion, ToolCall, ToolOffer
from posthouse.llm.prices import Prices
from posthouse.llm.routed import Routed
from posthouse.llm.router import Tier, Wanted
from posthouse.telemetry import Metrics
from posthouse.tools.model import Effect, Resources, Tool, ToolAnswer


class AgentLoop:
    """Lets agents work, each turn and each tool call a journalled step; one for a worker process.

    `timeout_seconds` is what one agent may take in one run, restarts included.
    """

    def __init__(
        self,
        models: Routed,
        tools: Mapping[str, Tool],
        resources: Resources,
        metrics: Metrics,
        *,
        max_iterations: int = 10,
        timeout_seconds: float = 120.0,
        prices: Prices | None = None,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        self._models = models
        approvals = Approvals(tools)
        self._turns = ModelTurns(models, metrics, Till(prices or Prices()), approvals)
        self._calls = ToolCalls(tools, resources, metrics, approvals)
        self._tools = tools
        self._max_iterations = max_iterations
        self._timeout_seconds = timeout_seconds
        self._now = now

    async def run(
        self,
        steps: Steps,
        agent: Agent,
        *,
        key: str,
        task: str,
        max_iterations: int | None = None,
        output: type[BaseModel] | None = None,
    ) -> AgentAnswer:
        """The agent's answer to the task; `stopped` says which limit ended it, if one did.

        With an output model the answer is a JSON text of that form. Raises ModelUnavailable, ContentRefused,
        InvalidOutput (nothing of use, thrice), Fatal.
        """
        limit = max_iterations or agent.spec.max_iterations or self._max_iterations
        offers = self._offers(agent)
        prompt = await steps.pin(agent.prompt)
        job = await self._assignment(
            steps, Agent(agent.spec, prompt), key, _Work(task, max_iterations, output)
        )
        talk = Conversation.begin(prompt.text, task, limit, tools=bool(offers))
        while True:
            talk = await self._within_window(job, talk, offers)
            completion = await steps.run(self._turns.step(job, talk, offers))
            came = await self._after(job, talk, completion)
            if isinstance(came, AgentAnswer):
                return came
            talk = came

    async def _within_window(
        self, job: Assignment, talk: Conversation, offers: tuple[ToolOffer, ...]
    ) -> Conversation:
        """The conversation as the model is told it; it depends on nothing but what is journalled."""
        window = job.agent.spec.window
        limit = window.left_by(offers, LAST_TURN)
        if limit is None:
            return talk
        if window.policy == "summarise" and (past := talk.older(limit)):
            summary = await job.steps.run(self._turns.summary_step(job, talk, past))
            if summary.text:
                talk = talk.summarised(past, summary.text)
        return talk.fitted(limit)

    async def _after(
        self, job: Assignment, talk: Conversation, completion: Completion
    ) -> Conversation | AgentAnswer:
        match decide(completion, talk.state, job.form):
            case CallTools() as asked:
                return await self._call(job, talk, completion, asked)
            case Repair(problem):
                return talk.after_repair(completion, problem)
            case FinalAnswer(text):
                return talk.answer(text)
            case TurnLimit(text):
                return talk.answer(text, RunCode.MAX_ITERATIONS)
            case TimeUp(text):
                return talk.answer(text, RunCode.TIMEOUT)
            case Overspent(text, limit):
                return talk.answer(text, RunCode.BUDGET_EXCEEDED, limit)
            case Stalled(text):
                return talk.answer(text, RunCode.LOOP_DETECTED)
            case Unusable(text):
                return _what_there_is(talk.answer(text, RunCode.INVALID_OUTPUT))
            case Refused():
                raise ContentRefused("The model declined to answer.")
            case never:
                assert_never(never)

    async def _call(
        self, job: Assignment, talk: Conversation, completion: Completion, asked: CallTools
    ) -> Conversation:
        turn = talk.state.turn

        def after(answers: Sequence[ToolAnswer]) -> Conversation:
            made = dict(zip((call.id for call in asked.calls), answers, strict=True))
            blocked = {call.id for call in asked.blocked}
            answered = [
                self._answered(job, turn, call, made.get(call.id), call.id in blocked)
                for call in completion.tool_calls
            ]
            return talk.after_calls(completion, answered)

        def opens(answers: Sequence[ToolAnswer]) -> tuple[Opening, ...]:
            # A stall is told before the turn that follows it, so its own step opens that.
            return () if after(answers).stall else (job.turn_opening(turn + 1),)

        wanted = Asked(turn, asked.calls, completion.asks, talk.outside, completion.unfit)
        answers = await self._calls.run(job, wanted, opens)
        came = after(answers)
        if came.stall:
            await job.steps.run(job.stall_step(turn, came.stall))
        may_ask = any(is_refused(one) and one.problem and one.problem.retryable for one in answers)
        if may_ask and await more(job, f"{job.turn_key(turn)}/tools/budget", "tool_calls"):
            return came.with_more()
        return came

    def _answered(
        self, job: Assignment, turn: int, call: ToolCall, made: ToolAnswer | None, blocked: bool
    ) -> Answered:
        if made is None:
            return Answered(call, call_blocked() if blocked else too_many())
        return Answered(call, made, job.call_key(turn, call), self._reads(call.name))

    def _reads(self, name: str) -> bool:
        tool = self._tools.get(name)
        return tool is None or tool.effect is Effect.READ

    async def _assignment(self, steps: Steps, agent: Agent, key: str, work: "_Work") -> Assignment:
        # Replay never asks for the time: only work that is really done looks at the deadline.
        used = await steps.elapsed(key)
        form = form_of(work.output) if work.output else None
        wanted = Wanted(Tier(agent.spec.tier), steps.models)
        passed = (agent.spec.name, work.task, work.max_iterations)
        return Assignment(
            steps=steps,
            agent=agent,
            key=key,
            digest=digest_of(*passed, form.shape.parameters) if form else digest_of(*passed),
            model=self._models.choices(wanted)[0].model,
            now=self._now,
            deadline=self._now() + self._timeout_seconds - used,
            form=form,
            wanted=wanted,
        )

    def _offers(self, agent: Agent) -> tuple[ToolOffer, ...]:
        missing = [name for name in agent.spec.tools if name not in self._tools]
        if missing:
            raise ConfigurationError(f"agent {agent.spec.name!r} has no tool {missing[0]!r}")
        return tuple(self._tools[name].offer for name in agent.spec.tools)


@dataclass(frozen=True)
class _Work:
    """What workflow code passes."""

    task: str
    max_iterations: int | None
    output: type[BaseModel] | None


def _what_there_is(answer: AgentAnswer) -> AgentAnswer:
    if not answer.text.strip() and not answer.sources:
        raise InvalidOutput("The model's answers were of no use, also after it was told so.")
    return answer
