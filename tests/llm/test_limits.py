import pytest

from posthouse.llm.limits import Allowance, Told, told_by

# 2026-01-31T10:00:00Z
NOW_MS = 1_769_853_600_000


def test_openai_says_limits_and_rests() -> None:
    headers = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m30.5s",
    }
    assert told_by(headers, NOW_MS) == Told(Allowance(500, 499), Allowance(30000, 0), 90.5)


def test_anthropic_says_moments() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-01-31T10:00:07Z",
    }
    assert told_by(headers, NOW_MS) == Told(Allowance(50, 0), Allowance(), 7.0)


@pytest.mark.parametrize("said", ["", "many", "-1", "0", "9" * 30, "1e3", "\u0663"])
def test_what_is_no_number_is_not_said(said: str) -> None:
    assert told_by({"x-ratelimit-limit-requests": said}, NOW_MS) is None


@pytest.mark.parametrize("said", ["", "soon", "1x", "2026-99-01T00:00:00Z", "9" * 50])
def test_a_reset_that_cannot_be_read_is_not_said(said: str) -> None:
    headers = {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": said,
    }
    assert told_by(headers, NOW_MS) == Told(Allowance(5, 0))


def test_a_rest_is_never_more_than_its_limit() -> None:
    headers = {"x-ratelimit-limit-tokens": "5", "x-ratelimit-remaining-tokens": "50"}
    assert told_by(headers, NOW_MS) == Told(tokens=Allowance(5, 5))
