"""Events in words: one calm line for each."""

import re
from dataclasses import dataclass
from pathlib import Path

import orjson

from posthouse.events import types as t

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_VALUE_LIMIT = 60


@dataclass(frozen=True, slots=True)
class Line:
    """What a person reads of an event, and in which style."""

    text: str
    style: str = ""


def clean(text: str) -> str:
    """The text without what a terminal would obey; pages and models write what they like."""
    return _CONTROL.sub("", text)


def seconds(value: float) -> str:
    """A duration for people."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def count(number: int, noun: str) -> str:
    """A number with its noun: `1 event`, `1,200 events`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shown(path: Path) -> str:
    """A path as short as it can be from where the person is."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def describe(event: t.Event) -> Line | None:
    """The line of an event; None for one that is not worth a line."""
    return _run(event) or _plan(event) or _person(event) or _turn(event) or _tool(event)


def _run(event: t.Event) -> Line | None:
    match event:
        case t.RunCreated(workflow=workflow, version=version):
            return Line(f"accepted as {workflow}, version {version}", "bold")
        case t.RunStarted(worker=worker):
            return Line(f"started by worker {worker}", "bold")
        case t.RunResumed(worker=worker, reason=reason):
            return Line(f"taken on by worker {worker} ({reason})", "bold yellow")
        case t.RunWaiting(wait_reason=reason):
            return Line(f"waits: {reason}", "yellow")
        case t.RunRetried(steps=steps):
            again = f"; {count(steps, 'step')} again" if steps else ""
            return Line(f"tried again{again}", "bold yellow")
        case t.RunCompleted():
            return Line("completed", "bold green")
        case t.RunIncomplete(message=message, code=code):
            return Line(f"incomplete: {message} ({code})", "bold yellow")
        case t.RunFailed(message=message, code=code):
            return Line(f"failed: {message} ({code})", "bold red")
        case t.RunCancelled():
            return Line("cancelled", "bold yellow")
        case _:
            return None


def _plan(event: t.Event) -> Line | None:
    match event:
        case t.PlanCreated(subtasks=subtasks):
            return Line(f"plans {count(len(subtasks), 'subtask')}: {', '.join(subtasks)}", "bold")
        case t.SubtaskStarted(worker=worker):
            return Line(f"started by worker {worker}", "bold")
        case t.SubtaskCompleted(status="completed"):
            return Line("completed", "green")
        case t.SubtaskCompleted(status=status, message=message):
            return Line(f"{status}: {message}", "yellow")
        case t.SubtaskFailed(message=message, code=code):
            return Line(f"failed: {message} ({code})", "red")
        case t.SubtaskCancelled():
            return Line("cancelled", "yellow")
        case t.SubtaskSkipped(subtask=subtask, because=because):
            return Line(f"skips {subtask}: {', '.join(because)} brought no result", "yellow")
        case _:
            return None


def _person(event: t.Event) -> Line | None:
    match event:
        case t.InputRequested(question=question, kind=kind):
            return Line(f"asks a person ({kind}): {question}", "bold yellow")
        case t.InputAnswered(decision=decision):
            return Line(f"a person said: {decision}", "bold")
        case t.InputExpired():
            return Line("nobody answered in time", "yellow")
        case t.BudgetWarning(percent=percent):
            return Line(f"{percent} % of the budget is spent", "yellow")
        case t.BudgetExceeded(limit=limit, action=action):
            return Line(f"the budget is spent ({limit}): {action}", "bold yellow")
        case _:
            return None


def _turn(event: t.Event) -> Line | None:
    match event:
        case t.TurnStarted(iteration=iteration, model=model):
            return Line(f"turn {iteration}: asks {model}", "dim")
        case t.TurnCompleted():
            return Line(_answer(event), "dim")
        case t.MessageCompleted(length=length):
            return Line(f"wrote {count(length, 'character')}")
        case t.MessageSuperseded():
            return Line("the text so far was cut by a crash and comes again", "yellow")
        case t.StallDetected(pattern=pattern, action=action):
            return Line(f"goes in circles ({pattern}): {action}", "yellow")
        case t.ModelRouted(model=model, provider=provider, reason=reason) if reason != "tier":
            return Line(f"goes to {model} at {provider} ({reason})", "yellow")
        case t.ModelRetrying(code=code, attempt=attempt, delay_ms=delay):
            pause = seconds(delay / 1000)
            return Line(f"the model failed ({code}); try {attempt + 1} in {pause}", "yellow")
        case _:
            return None


def _answer(event: t.TurnCompleted) -> str:
    what = f"{count(len(event.tool_calls), 'tool call')}" if event.tool_calls else "text"
    took = seconds(event.latency_ms / 1000)
    tokens = f", {event.completion_tokens:,} tokens" if event.completion_tokens else ""
    return f"turn {event.iteration}: {what} after {took}{tokens}"


def _tool(event: t.Event) -> Line | None:
    match event:
        case t.ToolStarted(tool=tool, arguments=arguments):
            return Line(f"{tool}({_arguments(arguments)})", "cyan")
        case t.ToolCompleted(tool=tool, duration_ms=duration, length=length):
            took = seconds(duration / 1000)
            return Line(f"{tool} gave {count(length, 'character')} in {took}", "dim")
        case t.ToolFailed(tool=tool, message=message):
            return Line(f"{tool} failed: {message}", "yellow")
        case t.ToolInDoubt(tool=tool):
            return Line(f"nobody knows whether {tool} took effect", "bold yellow")
        case t.SourceFound(address=address, title=title):
            return Line(f"read “{title}” at {address}" if title else f"read {address}", "green")
        case _:
            return None


def _arguments(text: str) -> str:
    """`query="…", max_results=5`; the text itself when it is no whole JSON object."""
    try:
        given = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _short(text)
    if not isinstance(given, dict):
        return _short(text)
    return ", ".join(f"{name}={_short(orjson.dumps(given[name]).decode())}" for name in given)


def _short(text: str) -> str:
    return text if len(text) <= _VALUE_LIMIT else text[: _VALUE_LIMIT - 1] + "…"
