import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from posthouse.logs import HIDDEN, bind_run, configure_logs, redact

SECRET = "sk-canary-0123456789abcdef"


class Lines:
    def __init__(self) -> None:
        self.stream = io.StringIO()

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    captured = Lines()
    configure_logs("info", process="worker-1", stream=captured.stream)
    yield captured
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_is_json_with_time_level_and_process(lines: Lines) -> None:
    structlog.get_logger("posthouse.x").info("llm_call", agent="scout", n=3, ok=True, none=None)
    (line,) = lines.all()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "llm_call", "level": "info", "logger": "posthouse.x", "process": "worker-1",
        "agent": "scout", "n": 3, "ok": True, "none": None,
    }  # fmt: skip


def test_below_the_level_nothing_is_written(lines: Lines) -> None:
    structlog.get_logger("posthouse.x").debug("quiet")
    logging.getLogger("other").debug("quiet")
    logging.getLogger("httpx").info("quiet")
    assert lines.all() == []


async def test_the_run_id_is_on_every_line_of_its_run_only(lines: Lines) -> None:
    log = structlog.get_logger("posthouse.x")

    async def work(run_id: str) -> None:
        with bind_run(run_id):
            await asyncio.gather(*[asyncio.create_task(inside()) for _ in range(2)])

    async def inside() -> None:
        log.info("inside")
        logging.getLogger("redis").warning("inside")

    await asyncio.gather(work("A"), work("B"))
    log.info("outside")
    written = lines.all()
    assert [line["run_id"] for line in written[:-1]] == ["A"] * 4 + ["B"] * 4
    assert "run_id" not in written[-1]


def test_other_libraries_take_the_same_road(lines: Lines) -> None:
    noisy = logging.getLogger("uvicorn.error")
    noisy.addHandler(logging.StreamHandler(io.StringIO()))
    configure_logs("info", process="api", stream=lines.stream)
    noisy.info("Started on %s", "here")
    logging.getLogger("py.warnings").warning("old")
    started, warned = lines.all()
    assert (started["event"], started["logger"]) == ("Started on here", "uvicorn.error")
    assert (started["level"], started["process"]) == ("info", "api")
    assert "old" in warned["event"]


def test_values_that_the_process_knows_to_be_secret_are_hidden(lines: Lines) -> None:
    configure_logs("info", process="api", stream=lines.stream, secrets=("plain-looking", "", "it"))
    structlog.get_logger("posthouse.x").info("with plain-looking in it")
    assert lines.all()[0]["event"] == "with *** in it"


def test_an_exception_is_one_line_without_secrets(lines: Lines) -> None:
    log = structlog.get_logger("posthouse.x")
    try:
        raise ValueError(f"no such key {SECRET}\nsecond line")
    except ValueError:
        log.exception("step_failed")
        logging.getLogger("other").exception("failed")
    assert "canary" not in lines.stream.getvalue()
    for line in lines.all():
        assert "Traceback" in line["exception"]
        assert "second line" in line["exception"]


@pytest.mark.parametrize(
    "key",
    ["api_key", "API-KEY", "openai_api_key", "authorization", "password", "redis.password",
     "client_secret", "access_token", "token", "set-cookie"],
)  # fmt: skip
def test_fields_that_are_secret_by_name(key: str) -> None:
    assert redact(None, "", {key: "hidden"}) == {key: HIDDEN}
    assert redact(None, "", {"headers": {key: "hidden"}}) == {"headers": {key: HIDDEN}}


@pytest.mark.parametrize("key", ["prompt_tokens", "tokens_estimated", "key", "secretary"])
def test_fields_that_are_not(key: str) -> None:
    assert redact(None, "", {key: 7}) == {key: 7}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {SECRET}.", "key sk-***."),
        ("rediss://user:p@ss@host:6379/0 down", "rediss://***@host:6379/0 down"),
        ("redis://:word@host", "redis://***@host"),
        ("redis://h/c?db=1&sentinel_password=w&a=b", "redis://h/c?db=1&sentinel_password=***&a=b"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer ***"),
        ("https://example.org/@user risk-averse", "https://example.org/@user risk-averse"),
        ("a basic understanding", "a basic understanding"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret(text: str, shown: str) -> None:
    assert redact(None, "", {"event": text, "more": [text, {"deep": (text,)}]}) == {
        "event": shown,
        "more": [shown, {"deep": [shown]}],
    }


def test_objects_are_shown_by_their_clean_repr() -> None:
    line = redact(None, "", {"error": ValueError(SECRET), "bytes": b"sk-canary-01234567"})
    assert line == {"error": "ValueError('sk-***')", "bytes": "b'sk-***'"}
