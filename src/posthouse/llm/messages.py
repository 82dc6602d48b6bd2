"""What goes to a model and what comes back, whoever the provider is."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class SystemMessage(_Frozen):
    """Who the model is and what it must do."""

    role: Literal["system"] = "system"
    text: str


class UserMessage(_Frozen):
    """What the model is asked."""

    role: Literal["user"] = "user"
    text: str


class ToolCall(_Frozen):
    """One call that the model asks for; `arguments` is its own text, JSON or not.

    `id` is safe in a step key and unique within its completion: the provider's own, or made so.
    """

    id: str
    name: str
    arguments: str


class AssistantMessage(_Frozen):
    """What the model answered."""

    role: Literal["assistant"] = "assistant"
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class ToolMessage(_Frozen):
    """The answer to one tool call."""

    role: Literal["tool"] = "tool"
    call_id: str
    text: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class ToolOffer(_Frozen):
    """A tool as the model sees it; `parameters` is a JSON Schema."""

    name: str
    description: str
    parameters: dict[str, Any]


class OutputShape(_Frozen):
    """The form that an answer must have: a name and a JSON Schema of an object."""

    name: str
    parameters: dict[str, Any]


class ModelRequest(_Frozen):
    """One request to a model. Timeout in seconds, for the whole answer; `shape` None asks for plain text."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolOffer, ...] = ()
    shape: OutputShape | None = None
    temperature: float = 0.1
    max_output_tokens: int | None = None
    timeout_seconds: float = 120.0


class Tokens(_Frozen):
    """What the provider says that a request took."""

    input: int
    output: int


class Completion(_Frozen):
    """A whole answer; `tokens` is None when the provider did not say.

    A refusal has finish_reason "refusal", a filtered answer "content_filter", one too long to be
    read "length": none of their words is in it, and `withheld` says how many characters came;
    so it does for what an agent's time was not enough for.
    `model` is what the provider says that answered, at the endpoint `provider`.
    `rules` are those by which the agent loop judged the turn; 0 are those from before there were any.
    `asks` are the ids of the calls about which a person is asked before they are made.
    `unfit` are those about which one would be asked, had they arguments that their tools take.
    `limit` is that of the budget which kept the request from being sent.
    """

    model: str
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str
    tokens: Tokens | None = None
    latency_ms: int
    withheld: int = 0
    rules: int = 0
    provider: str = ""
    asks: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()
    limit: str = ""
