"""Tokens by rule of thumb, where a provider does not say."""

from posthouse.llm.messages import AssistantMessage, Completion, Message, ModelRequest, Tokens

CHARACTERS_PER_TOKEN = 4


def tokens_of(request: ModelRequest, completion: Completion) -> Tokens:
    """What the provider said that the request took, else an estimate by characters."""
    if completion.tokens is not None:
        return completion.tokens
    offered = sum(len(o.name) + len(o.description) + len(str(o.parameters)) for o in request.tools)
    answer = AssistantMessage(text=completion.text, tool_calls=completion.tool_calls)
    return Tokens(
        input=_tokens(offered + sum(_characters(message) for message in request.messages)),
        output=_tokens(_characters(answer) + completion.withheld),
    )


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def _characters(message: Message) -> int:
    calls = message.tool_calls if isinstance(message, AssistantMessage) else ()
    return len(message.text) + sum(len(call.name) + len(call.arguments) for call in calls)
