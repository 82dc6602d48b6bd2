"""Agents without a model, for tests of workflows: what each says is a function of its name and its task."""

from collections.abc import Awaitable, Callable

from pydantic import BaseModel, TypeAdapter

from posthouse.agents.spec import Agent, AgentSpec
from posthouse.journal.model import AgentAnswer, Done, Prompt, Step, Steps, digest_of

Say = Callable[[str, str], Awaitable[str | AgentAnswer]]

_ANSWER: TypeAdapter[AgentAnswer] = TypeAdapter(AgentAnswer)


class Crew:
    """Stands in the agent loop's place: each answer is one journalled step, `<key>/turn:1`.

    `made` are the tasks that were really worked on, with the agent's name.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self.made: list[tuple[str, str]] = []

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
        """What the function says; an error that it raises is the step's."""

        async def work() -> Done[AgentAnswer]:
            self.made.append((agent.spec.name, task))
            said = await self._say(agent.spec.name, task)
            return Done(said if isinstance(said, AgentAnswer) else AgentAnswer(said, (), 1))

        name = agent.spec.name
        digest = digest_of(name, task)
        return await steps.run(Step(f"{key}/turn:1", work, _ANSWER, digest=digest, agent=name))


def agents_called(*names: str) -> dict[str, Agent]:
    """Agents by name, without tools."""
    return {
        name: Agent(AgentSpec(name, f"Is the {name}.", f"{name}.v1"), Prompt(name, 1, f"{name}."))
        for name in names
    }
