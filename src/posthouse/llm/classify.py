"""What a provider's failure means: HTTP status and error code in, an error of ours out."""

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

from posthouse.errors import ContentRefused, Fatal, ModelUnavailable, RunCode, RunFailed

_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "access_terminated"})
_REFUSAL_CODES = frozenset({"content_filter", "content_policy_violation"})
_LENGTH_CODES = frozenset({"context_length_exceeded", "string_above_max_length"})
_TRANSIENT_STATUSES = frozenset({409, 425})
_STATUS = re.compile(r"[45]\d\d", re.ASCII)
_LONGEST_SECONDS = 86_400.0

_FATAL = {
    401: "The model provider refused the API key.",
    402: "The account at the model provider has no credit left.",
    403: "The API key may not use this model.",
    404: "The model provider does not know this model.",
    413: "The conversation is longer than the model can read.",
}


def failure(status: int, code: str = "", retry_after: float | None = None) -> RunFailed:
    """The error for an HTTP status and the provider's error code; retry_after in seconds."""
    if code in _QUOTA_CODES:
        return Fatal("The quota at the model provider is used up.")
    if code in _REFUSAL_CODES:
        return refused()
    if code in _LENGTH_CODES:
        return Fatal(_FATAL[413])
    if status == 429:
        return ModelUnavailable(
            "The model provider limits the rate of requests.",
            code=RunCode.RATE_LIMIT,
            retry_after=retry_after,
        )
    if status == 408:
        return timed_out(retry_after)
    if status >= 500 or status in _TRANSIENT_STATUSES:
        return ModelUnavailable(
            "The model provider had an error.", code=RunCode.SERVER_ERROR, retry_after=retry_after
        )
    return Fatal(_FATAL.get(status, "The model provider refused the request as invalid."))


def stream_failure(code: str, kind: str) -> RunFailed:
    """The error for one that a stream brought after it had begun well, by its code and type."""
    if "rate_limit" in code or "rate_limit" in kind:
        return failure(429)
    # Some servers give the HTTP status that they would have answered with.
    return failure(int(code) if _STATUS.fullmatch(code) else 500, code)


def cut_off() -> ModelUnavailable:
    """No connection, or one that ended or went bad before the answer was whole."""
    return ModelUnavailable("The connection to the model failed.", code=RunCode.CONNECTION)


def timed_out(retry_after: float | None = None) -> ModelUnavailable:
    """No whole answer in time; retry_after in seconds."""
    return ModelUnavailable(
        "The model took too long to answer.", code=RunCode.TIMEOUT, retry_after=retry_after
    )


def refused() -> ContentRefused:
    """The model or the provider's filter declined to answer."""
    return ContentRefused("The model declined to answer.")


def retry_after_seconds(value: str | None, milliseconds: str | None, now_ms: int) -> float | None:
    """Seconds that Retry-After (seconds or HTTP date) or retry-after-ms asks for, if readable.

    Never less than was asked for, but where more than a day was: that is a day.
    """
    for text, unit in ((milliseconds, 1000.0), (value, 1.0)):
        if (seconds := _number(text)) is not None:
            return min(seconds / unit, _LONGEST_SECONDS)
    try:
        moment = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:  # "-0000" is UTC without a word on where the sender is
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, moment.timestamp() - now_ms / 1000), _LONGEST_SECONDS)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if number >= 0 else None  # and NaN is not
