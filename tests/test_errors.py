"""One table says what every error means to a caller; nothing that ends a run is missing in it."""

import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse import errors
from posthouse.errors import FAULTS, ModelUnavailable, RunCode, RunFailed, recorded_failure
from posthouse.llm import classify
from posthouse.runs.model import RunError

CODES = (
    "",
    "insufficient_quota",
    "billing_hard_limit_reached",
    "content_filter",
    "content_policy_violation",
    "context_length_exceeded",
    "rate_limit_exceeded",
    "invalid_api_key",
    "server_error",
)
TRANSIENT = {RunCode.RATE_LIMIT, RunCode.CONNECTION, RunCode.SERVER_ERROR, RunCode.TIMEOUT}


def kinds(kind: type[RunFailed] = RunFailed) -> Iterator[type[RunFailed]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from kinds(narrower)


def made(kind: type[RunFailed]) -> list[RunFailed]:
    """An error of this kind for each code that it can carry."""
    if "code" not in signature(kind).parameters:
        return [kind("why")]
    codes = TRANSIENT if kind is ModelUnavailable else RunCode
    return [kind("why", code=code) for code in codes]


def test_every_code_of_a_run_has_its_row() -> None:
    assert set(FAULTS) == set(RunCode)
    assert {code for code, fault in FAULTS.items() if fault.retryable} == TRANSIENT


@pytest.mark.parametrize(
    ("page", "row"), [("when-things-fail", r"(yes|no) \| (\d+)"), ("submit-runs", r"(yes|no)()")]
)
def test_the_docs_have_the_same_table(page: str, row: str) -> None:
    text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text()
    rows = re.findall(rf"^\| `(\w+)` \| {row} \|", text, re.MULTILINE)
    said = {
        code: (word == "yes", int(status or FAULTS[RunCode(code)].status))
        for code, word, status in rows
    }
    assert said == {code: (fault.retryable, fault.status) for code, fault in FAULTS.items()}


def test_what_passes_is_503_and_what_stays_is_422() -> None:
    assert {(fault.retryable, fault.status) for fault in FAULTS.values()} == {
        (True, 503),
        (False, 422),
    }


def test_every_error_that_ends_a_run_is_in_the_table() -> None:
    ours = {kind for kind in kinds() if kind.__module__ == errors.__name__}
    assert {kind.__name__ for kind in ours} >= {"ModelUnavailable", "InvalidOutput", "Fatal"}
    for error in (error for kind in ours for error in made(kind)):
        assert error.retryable is FAULTS[error.code].retryable, error


@pytest.mark.parametrize("code", RunCode)
def test_a_recorded_error_comes_back_with_its_code(code: RunCode) -> None:
    error = recorded_failure(code, "why")
    assert (error.code, str(error)) == (code, "why")
    assert isinstance(error, ModelUnavailable) is FAULTS[code].retryable


def in_the_table(error: RunFailed) -> bool:
    """Whether it says of itself what the table says of its code, in one of the fixed texts."""
    retryable = FAULTS[error.code].retryable
    said = (error.retryable, isinstance(error, ModelUnavailable))
    return said == (retryable, retryable) and str(error) in MESSAGES


def test_every_status_of_a_provider_is_in_the_table() -> None:
    for status in range(300, 600):
        for code in CODES:
            assert in_the_table(classify.failure(status, code)), (status, code)
    for code in CODES:
        assert in_the_table(classify.stream_failure(code, code)), code


@given(st.integers(300, 599), st.text(max_size=40), st.none() | st.floats(0, 1e9))
def test_no_word_of_a_provider_changes_what_a_caller_reads(
    status: int, code: str, retry_after: float | None
) -> None:
    assert in_the_table(classify.failure(status, code, retry_after))
    assert in_the_table(classify.stream_failure(code, code))


# The texts are fixed: a caller reads one of these, and never what the provider wrote.
MESSAGES = {
    "The model provider limits the rate of requests.",
    "The model provider had an error.",
    "The model took too long to answer.",
    "The connection to the model failed.",
    "The model declined to answer.",
    "The quota at the model provider is used up.",
    "The model provider refused the API key.",
    "The account at the model provider has no credit left.",
    "The API key may not use this model.",
    "The model provider does not know this model.",
    "The conversation is longer than the model can read.",
    "The model provider refused the request as invalid.",
}


def test_the_rest_of_what_can_go_wrong_with_a_provider() -> None:
    for error in (classify.cut_off(), classify.timed_out(), classify.refused()):
        assert in_the_table(error), error


@pytest.mark.parametrize(("retryable", "status"), [(True, 503), (False, 422)])
def test_an_error_from_before_there_was_a_status_has_one(retryable: bool, status: int) -> None:
    old = {"code": "a code of another version", "message": "why", "retryable": retryable}
    error = RunError.model_validate(old)
    assert error.model_dump() == old | {"status": status}
    assert RunError.model_validate_json(error.model_dump_json()) == error
