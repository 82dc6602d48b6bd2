"""The log of a stack."""

from pathlib import Path

from posthouse.embedded import logfile
from posthouse.embedded.logfile import LogFile


def test_each_line_carries_the_name_and_goes_to_the_terminal_when_asked(tmp_path: Path) -> None:
    shown: list[tuple[str, str]] = []
    with LogFile(tmp_path / "log", lambda name, line: shown.append((name, line))) as log:
        log.write("api", b"up")
        log.write("worker-12", b"\xff")
    assert (tmp_path / "log").read_bytes() == b"api      | up\nworker-12| \xff\n"
    assert shown == [("api", "up"), ("worker-12", "\N{REPLACEMENT CHARACTER}")]


def test_a_full_log_becomes_the_former_one(tmp_path: Path) -> None:
    line = b"x" * (logfile.ROTATE_BYTES // 2)
    with LogFile(tmp_path / "log") as log:
        for _ in range(3):
            log.write("api", line)
    assert (tmp_path / "log").stat().st_size < logfile.ROTATE_BYTES
    assert (tmp_path / "log.1").exists()
