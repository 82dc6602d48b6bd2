"""What a run of the harness came to: a table for people, JSON for machines."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

SHOWN = 10
# A fault that came so often and never hit work proves nothing.
FAIR = 3


@dataclass
class Inflicted:
    """One fault: which, when (seconds from the start), and what work it hit; None does not count."""

    nemesis: str
    at: float
    hit: str | None


@dataclass
class Report:
    """Everything that is told at the end."""

    seed: int
    needed_runs: int = 0
    needed_faults: int = 0
    runs: int = 0
    steps: int = 0
    executions: int = 0
    extra_executions: int = 0
    events_read: int = 0
    seconds: float = 0.0
    last_fault_to_end: float = 0.0
    faults: list[Inflicted] = field(default_factory=list)
    breaches: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def proven(self) -> int:
        """Faults that hit work in progress."""
        return sum(fault.hit is not None for fault in self.faults)

    @property
    def by_nemesis(self) -> dict[str, tuple[int, int]]:
        """For each nemesis: how often it hit work, and how often it came."""
        found: dict[str, tuple[int, int]] = {}
        for fault in self.faults:
            hits, times = found.get(fault.nemesis, (0, 0))
            found[fault.nemesis] = hits + (fault.hit is not None), times + 1
        return found

    @property
    def void(self) -> list[str]:
        """Why the run proves nothing, if it does not."""
        why = []
        if self.runs < self.needed_runs:
            why.append(f"{self.runs} runs, {self.needed_runs} are needed")
        if self.proven < self.needed_faults:
            why.append(f"{self.proven} faults hit work, {self.needed_faults} are needed")
        idle = [name for name, (hits, of) in self.by_nemesis.items() if not hits and of >= FAIR]
        if idle:
            why.append(f"never hit work: {', '.join(idle)}")
        return why

    @property
    def good(self) -> bool:
        """Whether nothing was breached and the run counts."""
        return not self.void and not any(self.breaches.values())

    def table(self) -> str:
        """For people."""
        lines = [
            f"seed {self.seed}: {self.runs} runs, {self.steps} steps, {self.proven} faults that hit work, "
            f"{self.seconds:.0f} s",
            f"executions {self.executions}, of these repeated because of a fault {self.extra_executions}; "
            f"events read over HTTP {self.events_read}; the last run ended "
            f"{self.last_fault_to_end:.1f} s after the last fault",
            "",
        ]
        if self.by_nemesis:
            lines += [f"{'fault':34}{'hit work':>9}{'of':>5}", "-" * 48]
            lines += [f"{n:34}{hit:>9}{of:>5}" for n, (hit, of) in sorted(self.by_nemesis.items())]
            lines.append("")
        lines += [f"{'invariant':34}{'breaches':>9}", "-" * 48]
        for name, found in self.breaches.items():
            lines.append(f"{name:34}{len(found):>9}")
            lines += [f"    {text}" for text in found[:SHOWN]]
        lines += ["", *(f"{name}: {value}" for name, value in self.figures.items())]
        lines += [f"void: {why}" for why in self.void]
        lines.append("passed" if self.good else f"FAILED; again with --seed {self.seed}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """For machines."""
        whole = asdict(self) | {"proven": self.proven, "void": self.void, "passed": self.good}
        path.write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))


def progress(began: float, text: str) -> None:
    """One line while it goes on."""
    print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)
