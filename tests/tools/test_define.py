import asyncio
import json
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from structlog.testing import capture_logs

from posthouse.errors import ConfigurationError, ToolFailed
from posthouse.tools.arguments import MAX_ARGUMENT_CHARACTERS, ArgumentsRefused, arguments_of
from posthouse.tools.define import tool
from posthouse.tools.model import Effect, Tool, ToolAnswer, ToolContext


@tool(effect=Effect.READ)
async def look_up(
    context: ToolContext,
    word: str,
    language: Literal["de", "en"] = "en",
    limit: Annotated[int, Field(ge=1, le=10)] = 5,
) -> dict[str, Any]:
    """Look a word up.

    In a dictionary.

    Args:
        word: The word,
            in any form.
        language: Of which dictionary.
        limit: How many meanings.
    """
    return {"run": context.run_id, "word": word, "language": language, "limit": limit}


async def _problem(made: Tool, context: ToolContext, arguments: str) -> dict[str, Any]:
    answer = await made.call(context, arguments)
    assert answer.problem is not None
    told: dict[str, Any] = json.loads(answer.text)
    assert told == answer.problem.model_dump(exclude_none=True)
    return told


def test_the_model_sees_the_signature_and_the_docstring() -> None:
    assert look_up.name == "look_up"
    assert look_up.offer.description == "Look a word up.\n\nIn a dictionary."
    assert look_up.offer.parameters == {
        "type": "object",
        "additionalProperties": False,
        "required": ["word"],
        "properties": {
            "word": {"type": "string", "description": "The word, in any form."},
            "language": {
                "type": "string",
                "enum": ["de", "en"],
                "default": "en",
                "description": "Of which dictionary.",
            },
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": 10,
                "default": 5,
                "description": "How many meanings.",
            },
        },
    }


async def test_a_call_gives_the_function_its_context_and_arguments(context: ToolContext) -> None:
    answer = await look_up.call(context, '{"word": "horse", "limit": "3"}')
    assert answer.problem is None
    assert json.loads(answer.text) == {
        "run": "run", "word": "horse", "language": "en", "limit": 3
    }  # fmt: skip


async def test_a_tool_may_have_no_argument_and_no_context(context: ToolContext) -> None:
    @tool()
    async def ping() -> str:
        """Says pong."""
        return "pong"

    assert ping.offer.parameters == {
        "type": "object", "additionalProperties": False, "properties": {}
    }  # fmt: skip
    for arguments in ("", " ", "{}"):
        assert await ping.call(context, arguments) == ToolAnswer(text="pong")


async def test_names_of_pydantic_and_models_as_arguments_are_fine(context: ToolContext) -> None:
    class Place(BaseModel):
        city: str

    @dataclass
    class Span:
        days: int

    @tool()
    async def trip(
        schema: Place, copy: Span, model_config: list[int], _private: str = "", *, json: bool
    ) -> str:
        """Plan a trip.

        :param schema: Where to.
        :param copy: For how long.
        :param model_config: With whom.
        :param _private: A secret.
        :param json: How to say it.
        """
        return f"{schema.city} {copy.days} {model_config} {_private} {json}"

    arguments = (
        '{"schema":{"city":"Ulm"},"copy":{"days":2},"model_config":[1],"_private":"p","json":true}'
    )
    assert (await trip.call(context, arguments)).text == "Ulm 2 [1] p True"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{", "not valid JSON"),
        ("nope", "not valid JSON"),
        ('{"word": NaN}', "not valid JSON"),
        ('"{}"', "one JSON object"),
        ("[]", "one JSON object"),
        ("null", "one JSON object"),
        ("{}", "word is missing. The arguments are: word, language, limit"),
        ('{"word": "a", "wrod": 1}', "wrod is not an argument of this tool"),
        ('{"word": "a", "limit": 11}', "limit: input should be less than or equal to 10"),
        ('{"word": "a", "language": "fr"}', "language: input should be 'de' or 'en'"),
        ('{"word": "\\ud800"}', "not valid JSON"),
        ('{"word": ["\ud800"]}', "word: input should be a valid string"),
        ("1" * 100_000, "not valid JSON: number out of range"),
    ],
)
async def test_wrong_arguments_are_explained(
    arguments: str, said: str, context: ToolContext
) -> None:
    told = await _problem(look_up, context, arguments)
    assert told["error"] == "invalid_arguments"
    assert said in told["message"]
    assert told["retryable"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        "[" * 1_000_000,
        '{"word":' * 100_000,
        '{"word": "' + "x" * 1_000_000 + '"}',
        '{"word": [' + "{}," * 80_000 + "{}]}",
        "{" + ",".join(f'"{n}":0' for n in range(25_000)) + "}",
        '{"' + "k" * 200_000 + '": 1}',
    ],
    ids=["deep_lists", "deep_objects", "long", "wide", "many_names", "long_name"],
)
async def test_hostile_arguments_cost_little(arguments: str, context: ToolContext) -> None:
    begun = perf_counter()
    told = await _problem(look_up, context, arguments)
    assert told["error"] == "invalid_arguments"
    assert len(told["message"]) < 2000
    assert perf_counter() - begun < 2  # a bound against quadratic work, not a target


async def test_too_long_arguments_are_not_parsed(context: ToolContext) -> None:
    told = await _problem(look_up, context, " " * (MAX_ARGUMENT_CHARACTERS + 1))
    assert f"above {MAX_ARGUMENT_CHARACTERS}" in told["message"]


async def _any_arguments(
    text: str, numbers: list[float], extra: dict[str, Any] | None = None
) -> None: ...


ANY_TEXTS = {"text": "A text.", "numbers": "Some numbers.", "extra": "More."}


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    _, arguments = arguments_of("any", _any_arguments, ANY_TEXTS)
    outcome: dict[str, Any] | str
    try:
        outcome = arguments.parse(text)
    except ArgumentsRefused as error:
        outcome = str(error)
    if isinstance(outcome, str):
        assert 0 < len(outcome) < 2000
    else:
        assert {"text", "numbers"} <= set(outcome) <= set(ANY_TEXTS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.dictionaries(st.sampled_from(["text", "numbers", "extra", "other"]), JSON)
    | st.fixed_dictionaries(
        {"text": st.text(), "numbers": st.lists(st.floats(allow_nan=False, allow_infinity=False))},
        optional={"extra": st.dictionaries(st.text(), st.text())},
    )
)
def test_what_is_valid_arrives_unchanged_and_the_rest_is_refused(value: dict[str, Any]) -> None:
    _, arguments = arguments_of("any", _any_arguments, ANY_TEXTS)
    try:
        parsed = arguments.parse(json.dumps(value))
    except ArgumentsRefused:
        return
    assert "other" not in value
    assert parsed["text"] == value["text"]
    assert parsed["extra"] == value.get("extra")


async def test_a_slow_tool_is_stopped(context: ToolContext) -> None:
    stopped = asyncio.Event()

    @tool(timeout_seconds=0.01)
    async def wait_for_ever() -> str:
        """Never answers."""
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    told = await _problem(wait_for_ever, context, "{}")
    assert told == {
        "error": "timeout", "message": "the tool timed out after 0.01 s", "retryable": True
    }  # fmt: skip
    assert stopped.is_set()


async def test_a_reported_failure_is_told_as_it_is(context: ToolContext) -> None:
    @tool()
    async def fetch() -> str:
        """Fails."""
        raise ToolFailed("gone", kind="http_error", retryable=True, status_code=503)

    told = await _problem(fetch, context, "{}")
    assert told == {
        "error": "http_error", "message": "gone", "retryable": True, "status_code": 503
    }  # fmt: skip


@pytest.mark.parametrize("error", [ValueError("secret"), ExceptionGroup("secret", [OSError()])])
async def test_an_unexpected_error_is_in_the_log_only(
    error: Exception, context: ToolContext
) -> None:
    @tool()
    async def broken() -> str:
        """Breaks."""
        raise error

    with capture_logs() as logs:
        told = await _problem(broken, context, "{}")
    assert told == {"error": "unexpected", "message": "the tool failed", "retryable": False}
    assert logs[0]["event"] == "tool_call_broke"
    assert logs[0]["exc_info"]


async def test_a_result_that_is_no_json_is_an_unexpected_error(context: ToolContext) -> None:
    @tool()
    async def odd() -> object:
        """Gives what cannot be told."""
        return object()

    with capture_logs():
        assert (await _problem(odd, context, "{}"))["error"] == "unexpected"


async def test_a_timeout_of_the_tools_own_is_a_timeout(context: ToolContext) -> None:
    @tool()
    async def impatient() -> str:
        """Gives up."""
        raise TimeoutError

    assert (await _problem(impatient, context, "{}"))["message"] == "the tool timed out"


async def test_cancellation_and_control_flow_pass_through(context: ToolContext) -> None:
    class Leave(BaseException):
        pass

    entered = asyncio.Event()

    @tool()
    async def wait() -> str:
        """Waits."""
        entered.set()
        await asyncio.Event().wait()
        return ""

    @tool()
    async def leave() -> str:
        """Leaves."""
        raise Leave

    call = asyncio.ensure_future(wait.call(context, "{}"))
    await entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with pytest.raises(Leave):
        await leave.call(context, "{}")


async def test_a_result_is_cut(context: ToolContext) -> None:
    @tool(max_result_bytes=100)
    async def talk() -> str:
        """Talks."""
        return "é" * 100 + "\ud800"

    answer = await talk.call(context, "{}")
    assert answer.text.endswith("… [cut]")
    assert len(answer.text.encode()) <= 100


async def _no_annotation(word) -> str:  # type: ignore[no-untyped-def]
    """Says."""
    return str(word)


async def _no_docstring(word: str) -> str:
    return word


async def _only_arguments(word: str) -> str:
    """:param word: A word."""
    return word


def _not_async(word: str) -> str:
    """Says."""
    return word


async def _any_number(*words: str) -> str:
    """Says."""
    return "".join(words)


async def _late_context(word: str, context: ToolContext) -> str:
    """Says.

    :param word: What to say.
    """
    return word


async def _no_schema(word: asyncio.Event) -> str:
    """Says.

    :param word: What to say.
    """
    return str(word)


async def _unknown_name(word: "Nowhere") -> str:  # type: ignore[name-defined] # noqa: F821
    """Says."""
    return str(word)


async def größe(word: str) -> str:
    """Says."""
    return word


async def _undocumented(word: str, loud: bool) -> str:
    """Says.

    Args:
        word: What to say.
    """
    return word


async def _documented_in_vain(word: str) -> str:
    """Says.

    Args:
        word: What to say.
        volume: How loud.
    """
    return word


async def _field_as_default(word: str = Field("hello", description="What to say.")) -> str:
    """Says."""
    return word


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_no_annotation, "annotate 'word'"),
        (_no_docstring, "docstring must say"),
        (_only_arguments, "docstring must say"),
        (_not_async, "async function"),
        (_any_number, "cannot be given by name"),
        (_late_context, "must be the first"),
        (_no_schema, "no schema"),
        (_unknown_name, "unreadable annotations"),
        (größe, "a name is 1-64"),
        (_undocumented, "say in its docstring what 'loud' is"),
        (_documented_in_vain, "its docstring describes 'volume', which is no argument of it"),
        (_field_as_default, r"write 'word' as Annotated\[<type>, Field\(...\)\] = <default>"),
    ],
)
def test_what_cannot_be_offered_is_refused_with_one_line(function: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as raised:
        tool()(function)
    assert "\n" not in str(raised.value)
    assert function.__name__ in str(raised.value)


@tool
async def bare(word: Annotated[str, Field(description="Any word.")]) -> str:
    """Says a word."""
    return word


async def test_without_a_call_and_with_a_field_it_is_a_tool_too(context: ToolContext) -> None:
    assert bare.offer.parameters["properties"]["word"]["description"] == "Any word."
    assert (await bare.call(context, '{"word": "hay"}')).text == "hay"


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"timeout_seconds": 0}, "timeout_seconds must be above 0, not 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds must be above 0, not nan"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds must be above 0, not inf"),
        ({"max_result_bytes": 99}, "max_result_bytes must be at least 100, not 99"),
        ({"retries": -1}, "retries must be 0 or more, not -1"),
        ({"effect": Effect.WRITE, "retries": 1}, "a call that writes is never made again"),
        ({"concurrency": 0}, "concurrency must be at least 1, not 0"),
    ],
)
def test_terms_that_cannot_be_kept_are_refused(terms: dict[str, Any], said: str) -> None:
    async def say() -> str:
        """Says."""
        return ""

    with pytest.raises(ConfigurationError, match=f"tool 'say': {said}"):
        tool(**terms)(say)


async def test_the_answers_of_a_trusted_tool_are_ours_but_not_its_failures(
    context: ToolContext,
) -> None:
    @tool(trusted=True)
    async def count(words: Annotated[list[str], Field(description="What to count.")]) -> int:
        """Count words."""
        if not words:
            raise ToolFailed("no words", kind="empty")
        return len(words)

    assert (await count.call(context, '{"words": ["a"]}')).trusted
    assert not (await count.call(context, '{"words": []}')).trusted
    assert not (await bare.call(context, '{"word": "hay"}')).trusted


async def test_what_may_pass_is_tried_again_and_the_rest_is_not(context: ToolContext) -> None:
    problems = [
        ToolFailed("busy", kind="http_error", retryable=True, status_code=503),
        TimeoutError(),
        ToolFailed("gone", kind="not_found"),
    ]
    tries = []

    @tool(retries=5)
    async def fetch() -> str:
        """Fetches."""
        tries.append(len(tries))
        raise problems[tries[-1]]

    assert (await _problem(fetch, context, "{}"))["error"] == "not_found"
    assert tries == [0, 1, 2]
