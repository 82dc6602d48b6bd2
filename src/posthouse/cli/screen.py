"""What the command prints: rich on a terminal, plain lines anywhere else."""

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from posthouse.cli.service import Envelope, Source
from posthouse.cli.words import Line, clean, count, describe
from posthouse.embedded.stack import Layout
from posthouse.events.types import MessageDelta

_EDGE = "  "
_NAME_WIDTH = 13


class Screen:
    """Prints for people. Nothing that it is given can move the cursor or change the terminal."""

    def __init__(self, file: TextIO) -> None:
        self._console = Console(file=file, highlight=False, markup=False, emoji=False)
        self._writing = Writing(self._console)

    @property
    def _rich(self) -> bool:
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def line(self, text: str = "", style: str = "") -> None:
        """One line; a terminal that is too narrow wraps it."""
        for part in clean(text).split("\n"):
            self._console.print(Text(_EDGE + part if part else "", style), soft_wrap=True)

    def title(self, text: str, warnings: Iterable[str] = ()) -> None:
        """What begins here, and what a person should know of before."""
        self.line(text, "bold")
        for warning in warnings:
            self.line(warning, "yellow")

    def say(self, text: str) -> None:
        """One line of the supervisor."""
        self.line(text, "yellow")

    def log(self, name: str, text: str) -> None:
        """One line of a process' log."""
        self.line(f"{name:<{_NAME_WIDTH}} {text}", "dim")

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Names and values in two columns."""
        for name, value in facts:
            text = Text.assemble((f"{_EDGE}{name:<{_NAME_WIDTH}}", "bold"), clean(value))
            self._console.print(text, soft_wrap=True)

    def starting(self, layout: Layout) -> None:
        """Says what is about to start."""
        names = ", ".join(process.name for process in layout.processes)
        self.line(f"starting {names}", "dim")

    def event(self, envelope: Envelope, elapsed: float, who: str = "") -> None:
        """One event, `elapsed` seconds after the submission; pieces of text grow the last line.

        `who` did it: the agent, unless another name is given.
        """
        event = envelope.event
        where = envelope.run_id + envelope.step
        if isinstance(event, MessageDelta):
            self._writing.grow(where, event)
            return
        self._writing.end(where)
        line = Line(envelope.type) if event is None else describe(event)
        if line is None:
            return
        who = clean(who or envelope.agent) or "run"
        head = f"{_EDGE}{elapsed:7.3f} s  "
        text = Text.assemble((head, "dim"), (f"{who:<{_NAME_WIDTH}}  ", "magenta"))
        text.append(" ".join(clean(line.text).split()), line.style)
        if self._rich:
            self._console.print(text, no_wrap=True, overflow="ellipsis")
        else:
            self._console.print(text, soft_wrap=True)

    def quiet(self) -> None:
        """Nothing is being written any more."""
        self._writing.end()

    def table(self, title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Rows under their heads; all but the first column are numbers."""
        listed = [[clean(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(heads, *listed, strict=True)]
        self.line(title, "bold")
        for number, row in enumerate([list(heads), *listed]):
            cells = [
                cell.rjust(width) if at else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            self.line("   ".join(cells).rstrip(), "" if number else "dim")
        self.line()

    def report(self, text: str, title: str = "Report") -> None:
        """A report in Markdown."""
        if self._rich:
            self._console.print(Rule(title, style="dim"))
            self._console.print(Padding(Markdown(clean(text), hyperlinks=False), (1, 2)))
        else:
            self.line(f"{title}\n")
            self._console.print(Text(clean(text).rstrip()), soft_wrap=True)
            self.line()

    def sources(self, sources: Iterable[Source]) -> None:
        """What was read, and the step that read it."""
        self.line("What was read", "bold")
        for source in sources:
            self.line(f"{source.title}  {source.address}" if source.title else source.address)
            self.line(f"  by step {source.step}", "dim")
        self.line()


class Writing:
    """The text that a model is writing: its end is shown on the last line of a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._texts: dict[str, str] = {}

    def grow(self, step: str, delta: MessageDelta) -> None:
        """A piece of the text of a step."""
        text = self._texts.get(step, "")[: delta.offset] + delta.text
        self._texts[step] = text
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            return
        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=15)
            self._live.start()
        self._live.update(self._tail(text))

    def _tail(self, text: str) -> Text:
        head = f"{_EDGE}writing  {count(len(text), 'character'):>17}  "
        room = max(self._console.width - len(head) - 2, 0)
        words = " ".join(clean(text[-4 * room :]).split()) if room else ""
        return Text.assemble((head, "dim"), (words[-room:] if room else "", "italic"), ("▍", "dim"))

    def end(self, step: str | None = None) -> None:
        """The text of a step, or of all, is whole or void."""
        if step is None:
            self._texts.clear()
        else:
            self._texts.pop(step, None)
        if self._live is not None and not self._texts:
            self._live.stop()
            self._live = None


def standard_output() -> Screen:
    """A screen on standard output, which writes `?` for what its encoding lacks."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    return Screen(sys.stdout)
