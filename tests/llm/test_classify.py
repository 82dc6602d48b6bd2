import pytest

from posthouse.errors import ContentRefused, Fatal, ModelUnavailable, RunCode
from posthouse.llm.classify import failure, retry_after_seconds, stream_failure

NOON = 1_700_000_000_000


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (429, RunCode.RATE_LIMIT),
        (500, RunCode.SERVER_ERROR),
        (503, RunCode.SERVER_ERROR),
        (529, RunCode.SERVER_ERROR),
        (409, RunCode.SERVER_ERROR),
        (408, RunCode.TIMEOUT),
    ],
)
def test_what_passes_by_itself_is_transient(status: int, code: RunCode) -> None:
    error = failure(status)
    assert isinstance(error, ModelUnavailable)
    assert error.code is code
    assert error.retryable


@pytest.mark.parametrize("status", [302, 400, 401, 402, 403, 404, 413, 418, 422])
def test_what_a_person_must_mend_is_fatal(status: int) -> None:
    assert isinstance(failure(status), Fatal)


def test_some_codes_say_more_than_their_status() -> None:
    assert isinstance(failure(429, "insufficient_quota"), Fatal)
    assert isinstance(failure(400, "content_filter"), ContentRefused)
    assert "longer than" in str(failure(400, "context_length_exceeded"))


def test_errors_inside_a_stream() -> None:
    assert stream_failure("rate_limit_exceeded", "").code is RunCode.RATE_LIMIT
    assert stream_failure("", "server_error").code is RunCode.SERVER_ERROR
    assert stream_failure("content_filter", "").code is RunCode.CONTENT_REFUSED


@pytest.mark.parametrize(
    ("value", "milliseconds", "seconds"),
    [
        ("7", None, 7.0),
        ("0.5", None, 0.5),
        ("7", "1500", 1.5),
        ("Tue, 14 Nov 2023 22:13:50 GMT", None, 30.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", None, 0.0),
        (None, None, None),
        ("soon", None, None),
        ("-3", None, None),
        ("nan", "inf", None),
    ],
)
def test_retry_after(value: str | None, milliseconds: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, milliseconds, NOON) == seconds
