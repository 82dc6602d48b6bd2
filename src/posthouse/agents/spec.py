"""What an agent is: a name, a prompt file, the tools it may use."""

import re
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from typing import Literal

from posthouse.agents.window import Window
from posthouse.errors import ConfigurationError
from posthouse.journal.model import Prompt
from posthouse.llm.router import Tier
from posthouse.registry import checked_name

_STEM = re.compile(r"(?P<name>[a-z0-9_-]+)\.v(?P<version>[1-9][0-9]*)")


@dataclass(frozen=True)
class AgentSpec:
    """An agent as its library file says it; `prompt` is its file's stem, like "researcher.v1".

    `tier` is how able a model it asks for, `max_output_tokens` the most that one answer may take (None: what the
    model likes, or 4,096 in a run with a budget).
    """

    name: str
    description: str
    prompt: str
    tools: tuple[str, ...] = ()
    temperature: float = 0.1
    max_iterations: int | None = field(default=None)
    window: Window = field(default_factory=Window)
    tier: Literal["fast", "smart"] = "smart"
    max_output_tokens: int | None = None

    def __post_init__(self) -> None:
        checked_name("agent", self.name)
        if self.tier not in tuple(Tier):
            raise ConfigurationError(f"agent {self.name!r}: its tier must be fast or smart")
        tools: object = self.tools
        if isinstance(tools, str):
            raise ConfigurationError(
                f"agent {self.name!r}: tools must be a tuple, as in ({tools!r},)"
            )


@dataclass(frozen=True)
class Agent:
    """A spec with its prompt's text."""

    spec: AgentSpec
    prompt: Prompt


def with_prompt(spec: AgentSpec, folder: Traversable) -> Agent:
    """The agent with the prompt that lies in the folder. Raises ConfigurationError."""
    stem = _STEM.fullmatch(spec.prompt)
    if stem is None:
        raise ConfigurationError(f"prompt {spec.prompt!r} must be named like 'researcher.v1'")
    file = folder / f"{spec.prompt}.md"
    if not file.is_file():
        raise ConfigurationError(f"agent {spec.name!r} has no prompt file {file.name} in {folder}")
    text = file.read_text(encoding="utf-8").strip()
    if not text:
        raise ConfigurationError(f"prompt file {spec.prompt}.md is empty")
    return Agent(spec, Prompt(stem["name"], int(stem["version"]), text))
