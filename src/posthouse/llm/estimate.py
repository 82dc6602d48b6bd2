"""Tokens by rule of thumb, where a provider does not say."""

from posthouse.llm.messages import AssistantMessage, Completion, Message, ModelRequest, Tokens

CHARACTERS_PER_TOKEN = 4
# What an answer takes before it is known how long it is.
EXPECTED_OUTPUT = 500


def tokens_of(request: ModelRequest, completion: Completion) -> Tokens:
    """What the provider said that the request took, else an estimate by characters."""
    if completion.tokens is not None:
        return completion.tokens
    answer = AssistantMessage(text=completion.text, tool_calls=completion.tool_calls)
    return Tokens(
        input=input_tokens(request),
        output=_tokens(_characters(answer) + completion.withheld),
    )


def input_tokens(request: ModelRequest) -> int:
    """What the request takes to read."""
    offered = sum(len(o.name) + len(o.description) + len(str(o.parameters)) for o in request.tools)
    return _tokens(offered + sum(_characters(message) for message in request.messages))


def expected_tokens(request: ModelRequest) -> int:
    """What the request with its answer will take."""
    limit = request.max_output_tokens
    output = EXPECTED_OUTPUT if limit is None else min(limit, EXPECTED_OUTPUT)
    return input_tokens(request) + output


def written_tokens(characters: int) -> int:
    """What it takes to write so much."""
    return _tokens(characters)


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def _characters(message: Message) -> int:
    calls = message.tool_calls if isinstance(message, AssistantMessage) else ()
    return len(message.text) + sum(len(call.name) + len(call.arguments) for call in calls)
