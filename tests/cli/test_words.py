"""Events in words."""

from pathlib import Path

import pytest

from posthouse.cli.words import clean, count, describe, seconds, shown
from posthouse.events import types as t


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (t.RunCreated(workflow="research", version=1), "accepted as research, version 1"),
        (t.RunStarted(worker="w1"), "started by worker w1"),
        (t.RunResumed(worker="w2", reason="crash"), "taken on by worker w2 (crash)"),
        (t.RunFailed(code="fatal", message="bad key", retryable=False), "failed: bad key (fatal)"),
        (t.TurnStarted(iteration=2, model="m"), "turn 2: asks m"),
        (
            t.TurnCompleted(
                iteration=2,
                model="m",
                finish_reason="tool_calls",
                latency_ms=1500,
                completion_tokens=1200,
                tool_calls=("a", "b"),
            ),
            "turn 2: 2 tool calls after 1.50 s, 1,200 tokens",
        ),
        (
            t.ToolStarted(tool="search_web", call_id="c", arguments='{"query":"a","n":5}'),
            'search_web(query="a", n=5)',
        ),
        (t.ToolStarted(tool="x", call_id="c", arguments='{"cut…'), 'x({"cut…)'),
        (t.ToolStarted(tool="x", call_id="c", arguments="[1]"), "x([1])"),
        (
            t.ToolCompleted(tool="x", call_id="c", duration_ms=12, result="r", length=1),
            "x gave 1 character in 12 ms",
        ),
        (t.SourceFound(address="corpus://a.md", title="A"), "read “A” at corpus://a.md"),
        (t.SourceFound(address="corpus://a.md", title=""), "read corpus://a.md"),
        (
            t.ModelRetrying(code="rate_limit", attempt=1, delay_ms=2000),
            "the model failed (rate_limit); try 2 in 2.00 s",
        ),
    ],
)
def test_an_event_is_one_line(event: t.Event, words: str) -> None:
    line = describe(event)
    assert line is not None
    assert line.text == words


def test_every_stored_event_has_words() -> None:
    kinds = [kind for kind in t.Fact.__subclasses__() if kind is not t.MessageDelta]
    values = {int: 1, str: "x", bool: True, int | None: 1, str | None: "x", tuple[str, ...]: ()}
    for kind in kinds:
        fields = {n: values[f.annotation] for n, f in kind.model_fields.items() if n != "type"}
        assert describe(kind(**fields)) is not None, kind


def test_nothing_that_a_terminal_would_obey_is_left() -> None:
    assert clean("a\x1b[2Jb\x9b1mc\rd\x07e\n\tf\u009d") == "a[2Jb1mcde\n\tf"


def test_numbers_and_durations_and_paths() -> None:
    assert seconds(0.0123) == "12 ms"
    assert seconds(61.5) == "61.50 s"
    assert count(1, "event") == "1 event"
    assert count(1200, "event") == "1,200 events"
    assert shown(Path.cwd() / "a" / "b") == "a/b"
    assert shown(Path("/elsewhere")) == "/elsewhere"
