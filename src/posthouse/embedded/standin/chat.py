"""The chat request as it comes in, checked as strictly as the real thing does."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, assert_never

import orjson
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from posthouse.embedded.standin.decide import AsJson, Ask, AsText, Choice, Named
from posthouse.embedded.standin.refused import Refused, misfit
from posthouse.llm.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolOffer,
    UserMessage,
)


@dataclass(frozen=True)
class ChatRequest:
    """One checked request: what the answer depends on, and how it is to be sent.

    `max_tokens` is None for no limit.
    """

    model: str
    ask: Ask
    stream: bool
    include_usage: bool
    max_tokens: int | None


class _Part(BaseModel):
    type: str
    text: str = ""


_Content = str | list[_Part]


class _Function(BaseModel):
    name: str
    arguments: str


class _Call(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: _Function


class _System(BaseModel):
    role: Literal["system", "developer"]
    content: _Content


class _User(BaseModel):
    role: Literal["user"]
    content: _Content


class _Assistant(BaseModel):
    role: Literal["assistant"]
    content: _Content | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[_Call], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.refusal is None and not self.tool_calls:
            raise ValueError("content may be left out only where there are tool_calls or a refusal")
        return self


class _Tool(BaseModel):
    role: Literal["tool"]
    tool_call_id: str
    content: _Content


_Wire = Annotated[_System | _User | _Assistant | _Tool, Field(discriminator="role")]


class _Definition(BaseModel):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


class _Offer(BaseModel):
    type: Literal["function"]
    function: _Definition


class _ChosenFunction(BaseModel):
    name: str


class _Chosen(BaseModel):
    type: Literal["function"]
    function: _ChosenFunction


class _SchemaFormat(BaseModel):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")


class _AsText(BaseModel):
    type: Literal["text"]


class _AsObject(BaseModel):
    type: Literal["json_object"]


class _AsSchema(BaseModel):
    type: Literal["json_schema"]
    json_schema: _SchemaFormat


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Body(BaseModel):
    model: str = Field(min_length=1)
    messages: list[_Wire] = Field(min_length=1)
    tools: Annotated[list[_Offer], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Chosen | None = None
    parallel_tool_calls: bool | None = None
    response_format: Annotated[
        _AsText | _AsObject | _AsSchema | None, Field(discriminator="type")
    ] = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    n: Literal[1] | None = None


_BODY = TypeAdapter(_Body)


def chat_request(body: object) -> ChatRequest:
    """The checked request. Raises Refused: what a real server would answer with 400."""
    try:
        read = _BODY.validate_python(body)
    except ValidationError as error:
        raise misfit(error) from error
    _check_stream(read)
    _check_answers(read.messages)
    return ChatRequest(
        model=read.model,
        ask=Ask(
            messages=tuple(_message(m) for m in read.messages),
            offers=tuple(_offer(tool.function) for tool in read.tools or ()),
            choice=_choice(read),
            form=_form(read.response_format),
            parallel=read.parallel_tool_calls is not False,
        ),
        stream=bool(read.stream),
        include_usage=read.stream_options is not None and read.stream_options.include_usage,
        max_tokens=read.max_completion_tokens or read.max_tokens,
    )


def wire_bytes(body: object, *names: str) -> bytes:
    """The named fields of a body, the same bytes for the same values."""
    fields = {name: body.get(name) for name in names} if isinstance(body, dict) else {}
    return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)


def _check_stream(body: _Body) -> None:
    if body.stream_options is not None and not body.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise Refused(message, param="stream_options")


def _check_answers(messages: list[_Wire]) -> None:
    """Every tool call is answered, right after it was made, and nothing else is."""
    open_calls: list[str] = []
    for index, message in enumerate(messages):
        if isinstance(message, _Tool):
            if message.tool_call_id not in open_calls:
                text = f"No tool call {message.tool_call_id!r} waits for an answer here."
                raise Refused(text, param=f"messages.{index}")
            open_calls.remove(message.tool_call_id)
            continue
        _check_none_open(open_calls, index)
        if isinstance(message, _Assistant):
            open_calls = [call.id for call in message.tool_calls or ()]
    _check_none_open(open_calls, len(messages))


def _check_none_open(calls: list[str], index: int) -> None:
    if calls:
        text = f"These tool calls have no answer before message {index}: {', '.join(calls)}."
        raise Refused(text, param="messages")


def _choice(body: _Body) -> Choice:
    choice = body.tool_choice
    if choice is None:
        return "auto"
    if not body.tools and choice != "none":
        message = "The 'tool_choice' parameter is only allowed when 'tools' are given."
        raise Refused(message, param="tool_choice")
    if not isinstance(choice, _Chosen):
        return choice
    name = choice.function.name
    if name not in {tool.function.name for tool in body.tools or ()}:
        raise Refused(f"Tool choice {name!r} is not one of the tools.", param="tool_choice")
    return Named(name)


def _form(wanted: _AsText | _AsObject | _AsSchema | None) -> AsText | AsJson:
    match wanted:
        case None | _AsText():
            return AsText()
        case _AsObject():
            return AsJson()
        case _AsSchema():
            return AsJson(wanted.json_schema.schema_)


def _offer(tool: _Definition) -> ToolOffer:
    return ToolOffer(name=tool.name, description=tool.description, parameters=tool.parameters)


def _message(message: _Wire) -> Message:
    match message:
        case _System():
            return SystemMessage(text=_text(message.content))
        case _User():
            return UserMessage(text=_text(message.content))
        case _Tool():
            return ToolMessage(call_id=message.tool_call_id, text=_text(message.content))
        case _Assistant():
            calls = tuple(
                ToolCall(id=c.id, name=c.function.name, arguments=c.function.arguments)
                for c in message.tool_calls or ()
            )
            text = _text(message.content) if message.content is not None else message.refusal or ""
            return AssistantMessage(text=text, tool_calls=calls)
        case _:
            assert_never(message)


def _text(content: _Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content if part.type == "text")
