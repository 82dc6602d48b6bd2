"""The agent loop: a model turn, a decision, tool calls, until there is an answer or a limit."""

from collections.abc import Callable, Mapping
from typing import assert_never

from posthouse import clock
from posthouse.agents.assignment import Assignment
from posthouse.agents.calls import ToolCalls, too_many
from posthouse.agents.conversation import Answered, Conversation
from posthouse.agents.decide import (
    CallTools,
    FinalAnswer,
    Refused,
    Repair,
    TimeUp,
    TurnLimit,
    Unusable,
    decide,
)
from posthouse.agents.spec import Agent
from posthouse.agents.turn import ModelTurns
from posthouse.errors import ConfigurationError, ContentRefused, InvalidOutput, RunCode
from posthouse.journal.model import AgentAnswer, Prompt, Steps, digest_of
from posthouse.llm.messages import Completion, ToolOffer
from posthouse.llm.retry import RetryingProvider
from posthouse.telemetry import Metrics
from posthouse.tools.model import Resources, Tool


class AgentLoop:
    """Lets agents work, each turn and each tool call a journalled step; one for a worker process.

    `timeout_seconds` is what one agent may take in one run, restarts included.
    """

    def __init__(
        self,
        provider: RetryingProvider,
        tools: Mapping[str, Tool],
        resources: Resources,
        metrics: Metrics,
        *,
        model: str,
        max_iterations: int = 10,
        timeout_seconds: float = 120.0,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        self._turns = ModelTurns(provider, metrics)
        self._calls = ToolCalls(tools, resources, metrics)
        self._tools = tools
        self._model = model
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
    ) -> AgentAnswer:
        """The agent's answer to the task; `stopped` says which limit ended it, if one did.

        Raises ModelUnavailable, ContentRefused, InvalidOutput (an empty answer, thrice), Fatal.
        """
        limit = max_iterations or agent.spec.max_iterations or self._max_iterations
        offers = self._offers(agent)
        prompt = await steps.pin(agent.prompt)
        job = await self._assignment(steps, agent, prompt, key, task, max_iterations)
        talk = Conversation.begin(prompt.text, task, limit)
        while True:
            completion = await steps.run(self._turns.step(job, talk, offers))
            came = await self._after(job, talk, completion)
            if isinstance(came, AgentAnswer):
                return came
            talk = came

    async def _after(
        self, job: Assignment, talk: Conversation, completion: Completion
    ) -> Conversation | AgentAnswer:
        match decide(completion, talk.state):
            case CallTools() as asked:
                return talk.after_calls(completion, await self._call(job, talk, asked))
            case Repair(problem):
                return talk.after_repair(completion, problem)
            case FinalAnswer(text):
                return talk.answer(text)
            case TurnLimit(text):
                return talk.answer(text, RunCode.MAX_ITERATIONS)
            case TimeUp(text):
                return talk.answer(text, RunCode.TIMEOUT)
            case Unusable(text) if text.strip():
                return talk.answer(text, RunCode.INVALID_OUTPUT)
            case Unusable():
                raise InvalidOutput("The model gave an empty answer again and again.")
            case Refused():
                raise ContentRefused("The model declined to answer.")
            case never:
                assert_never(never)

    async def _call(self, job: Assignment, talk: Conversation, asked: CallTools) -> list[Answered]:
        turn = talk.state.turn
        answers = await self._calls.run(job, turn, asked.calls)
        made = [
            Answered(call, job.call_key(turn, call), answer)
            for call, answer in zip(asked.calls, answers, strict=True)
        ]
        return made + [Answered(call, "", too_many()) for call in asked.surplus]

    async def _assignment(
        self,
        steps: Steps,
        agent: Agent,
        prompt: Prompt,
        key: str,
        task: str,
        max_iterations: int | None,
    ) -> Assignment:
        # Replay never asks for the time: only work that is really done looks at the deadline.
        used = await steps.elapsed(key)
        return Assignment(
            steps=steps,
            agent=Agent(agent.spec, prompt),
            key=key,
            digest=digest_of(agent.spec.name, task, max_iterations),
            model=self._model,
            now=self._now,
            deadline=self._now() + self._timeout_seconds - used,
        )

    def _offers(self, agent: Agent) -> tuple[ToolOffer, ...]:
        missing = [name for name in agent.spec.tools if name not in self._tools]
        if missing:
            raise ConfigurationError(f"agent {agent.spec.name!r} has no tool {missing[0]!r}")
        return tuple(self._tools[name].offer for name in agent.spec.tools)
