import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_every_passing_status_may_say_when_to_come_back() -> None:
    for status in (408, 409, 425, 429, 500, 503):
        error = failure(status, retry_after=7.0)
        assert isinstance(error, ModelUnavailable)
        assert error.retry_after == 7.0


@given(st.text() | st.from_regex(r"[\w ,:+.-]{0,60}"))
def test_no_header_breaks_the_reading_of_it(value: str) -> None:
    seconds = retry_after_seconds(value, value, NOON)
    assert seconds is None or 0 <= seconds <= 86_400


def test_errors_inside_a_stream() -> None:
    assert isinstance(stream_failure("401", ""), Fatal)
    assert stream_failure("503", "").code is RunCode.SERVER_ERROR
    assert stream_failure("9999", "").code is RunCode.SERVER_ERROR
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
        ("nan", "nan", None),
        ("", "", None),
        ("0", None, 0.0),
        ("Tue, 14 Nov 2023 22:13:50 -0000", None, 30.0),
        ("Tue, 14 Nov 2023 23:13:50 +0100", None, 30.0),
        ("7", "inf", 86_400.0),
        ("1e400", None, 86_400.0),
        ("9" * 5000, None, 86_400.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None, 86_400.0),
        ("Tue, 14 Nov 99999 22:13:50 GMT", None, None),
        ("Tue, 14 Nov 2023 22:13:50 +9999999999", None, None),
    ],
)
def test_retry_after(value: str | None, milliseconds: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, milliseconds, NOON) == seconds
