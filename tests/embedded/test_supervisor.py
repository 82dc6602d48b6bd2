"""The supervisor on real processes: order, restarts, stops, and what its death leaves behind."""

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from posthouse.embedded.logfile import LogFile
from posthouse.embedded.process import Process, StartFailed
from posthouse.embedded.supervisor import Supervisor

LIMIT_SECONDS = 20.0

WRITES_AND_WAITS = """
    import os, signal, sys, time
    note = open(sys.argv[1], "a", buffering=1)
    note.write(f"{sys.argv[2]} up {os.getpid()}\\n")
    def leave(*_):
        note.write(f"{sys.argv[2]} down {os.getpid()}\\n")
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    print("at work", flush=True)
    while True:
        time.sleep(60)
"""

DEAF = """
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note = open(sys.argv[1], "a", buffering=1)
    note.write(f"{sys.argv[2]} up {os.getpid()}\\n")
    while True:
        time.sleep(60)
"""

WORKS_ONLY_ONCE = """
    import sys, time
    with open(sys.argv[1], "r+") as note:
        if note.read():
            sys.exit(7)
        note.write(f"{sys.argv[2]} up 0\\n")
    while True:
        time.sleep(60)
"""

# Both hold the writing end of the pipe `ends`: it ends when the last of them is gone.
HAS_A_CHILD = """
    import os, subprocess, sys, time
    ends = sys.argv[1] + ".ends"
    held = [os.open(ends, os.O_WRONLY)] if os.path.exists(ends) else []
    program = "import time\\nwhile True: time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program], pass_fds=held)
    note = open(sys.argv[1], "a", buffering=1)
    note.write(f"child up {child.pid}\\n{sys.argv[2]} up {os.getpid()}\\n")
    while True:
        time.sleep(60)
"""


class Notes:
    """What the children wrote, and what the supervisor said."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notes"
        self.path.touch()
        self.said: list[str] = []
        self._more = asyncio.Event()

    def say(self, line: str) -> None:
        self.said.append(line)
        self._more.set()

    async def heard(self, words: str, times: int = 1) -> None:
        """Returns when the supervisor said it so many times."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while sum(words in line for line in self.said) < times:
                self._more.clear()
                await self._more.wait()

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text().splitlines()]

    def pids(self, name: str) -> list[int]:
        return [int(line[2]) for line in self.lines() if line[:2] == [name, "up"]]

    def process(self, name: str, program: str, stage: int = 0, **more: float) -> Process:
        """A child that is ready when it has said so; its successor when it has said so again."""
        seen: set[int] = set()

        async def ready() -> bool:
            new = set(self.pids(name)) - seen
            seen.update(new)
            return bool(new)

        argv = (sys.executable, "-c", textwrap.dedent(program), str(self.path), name)
        return Process(name=name, argv=argv, ready=ready, stage=stage, **more)


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogFile]:
    with LogFile(tmp_path / "log") as log:
        yield log


async def never() -> bool:
    return False


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    try:
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] not in "ZXx"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pids: list[int]) -> None:
    """Returns when none of them runs; one that was killed closes its files before it is dead."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while any(alive(pid) for pid in pids):  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)


async def test_stages_start_in_order_and_stop_in_reverse(notes: Notes, log: LogFile) -> None:
    processes = [
        notes.process("second", WRITES_AND_WAITS, stage=1),
        notes.process("first", WRITES_AND_WAITS),
        notes.process("third", WRITES_AND_WAITS, stage=2),
    ]
    async with Supervisor(processes, log, notes.say):
        assert [line[:2] for line in notes.lines()] == [
            ["first", "up"],
            ["second", "up"],
            ["third", "up"],
        ]
    down = [line[0] for line in notes.lines() if line[1] == "down"]
    assert down == ["third", "second", "first"]
    assert notes.said == []


async def test_what_dies_is_started_again_and_its_lines_are_in_the_log(
    notes: Notes, log: LogFile
) -> None:
    async with Supervisor(
        [notes.process("worker", WRITES_AND_WAITS)], log, notes.say
    ) as supervisor:
        first = supervisor.pid("worker")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await notes.heard("worker is back")
        second = supervisor.pid("worker")
        assert second == notes.pids("worker")[1] != first
    assert notes.said[0] == "worker was killed by SIGKILL; starting it again in 0.2 s"
    assert notes.said[1].startswith("worker is back after ")
    assert log.path.read_text().splitlines() == ["worker   | at work"] * 2
    assert not alive(second)


async def test_pauses_between_restarts_double(notes: Notes, log: LogFile) -> None:
    async with Supervisor([notes.process("worker", WORKS_ONLY_ONCE)], log, notes.say) as supervisor:
        pid = supervisor.pid("worker")
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        await notes.heard("exit code 7", times=2)
    pauses = [line.rpartition(" in ")[2] for line in notes.said if "starting" in line]
    assert pauses == ["0.2 s", "0.4 s", "0.8 s"]


async def test_one_that_dies_before_it_is_ready_fails_the_start_with_its_last_words(
    notes: Notes, log: LogFile
) -> None:
    program = "print('port 8000: no such horse', flush=True); raise SystemExit(3)"
    processes = [
        notes.process("good", WRITES_AND_WAITS),
        notes.process("bad", program, stage=1),
    ]
    with pytest.raises(StartFailed, match="bad ended with exit code 3 before it was ready") as info:
        await Supervisor(processes, log, notes.say).start()
    assert info.value.lines == ("port 8000: no such horse",)
    assert [line[:2] for line in notes.lines()] == [["good", "up"], ["good", "down"]]


async def test_one_that_is_never_ready_fails_the_start(notes: Notes, log: LogFile) -> None:
    silent = notes.process("silent", "import time; print('hm', flush=True); time.sleep(60)")

    impatient = Process(silent.name, silent.argv, never, start_seconds=0.5)
    with pytest.raises(StartFailed, match=r"silent was not ready within 0\.5 s"):
        await Supervisor([impatient], log, notes.say).start()


async def test_one_that_is_not_required_is_not_waited_for_beyond_its_time(
    notes: Notes, log: LogFile
) -> None:
    argv = notes.process("slow", WRITES_AND_WAITS).argv
    slow = Process("slow", argv, never, start_seconds=0.1, required=False)
    async with Supervisor([slow], log, notes.say) as supervisor:
        assert supervisor.pid("slow") is not None


async def test_a_program_that_does_not_exist_says_so(notes: Notes, log: LogFile) -> None:
    with pytest.raises(StartFailed, match=r"missing ended with exit code 12[67]") as info:
        await Supervisor([Process("missing", ("/no/such/program",), never)], log, notes.say).start()
    assert "/no/such/program" in info.value.lines[0]


async def test_one_that_ignores_sigterm_is_killed_after_its_limit(
    notes: Notes, log: LogFile
) -> None:
    async with Supervisor([notes.process("deaf", DEAF, stop_seconds=0.2)], log, notes.say):
        pass
    assert notes.said == ["deaf did not stop in 0.2 s; killing it"]
    assert not alive(notes.pids("deaf")[0])


async def test_kill_ends_everything_at_once(notes: Notes, log: LogFile) -> None:
    async with Supervisor(
        [notes.process("deaf", DEAF, stop_seconds=600)], log, notes.say
    ) as supervisor:
        supervisor.kill()
        async with asyncio.timeout(LIMIT_SECONDS):
            await supervisor.stop()
    assert not alive(notes.pids("deaf")[0])


async def test_children_of_a_process_end_with_it(notes: Notes, log: LogFile) -> None:
    async with Supervisor([notes.process("parent", HAS_A_CHILD)], log, notes.say) as supervisor:
        pid = supervisor.pid("parent")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await notes.heard("parent is back")
        await gone(notes.pids("child")[:1])
    await gone(notes.pids("child"))


SUPERVISES = """
    import asyncio, sys
    from pathlib import Path
    from posthouse.embedded.logfile import LogFile
    from posthouse.embedded.process import Process
    from posthouse.embedded.supervisor import Supervisor

    async def main():
        notes = Path(sys.argv[1])
        async def ready():
            return "parent up" in notes.read_text()
        argv = (sys.executable, "-c", sys.argv[2], sys.argv[1], "parent")
        process = Process("parent", argv, ready)
        with LogFile(notes.with_name("log")) as log:
            async with Supervisor([process], log, print) as supervisor:
                print("ready", flush=True)
                await asyncio.Event().wait()

    asyncio.run(main())
"""


async def test_sigkill_of_the_supervisor_leaves_nothing(notes: Notes) -> None:
    ends = f"{notes.path}.ends"
    os.mkfifo(ends)
    reading = os.open(ends, os.O_RDONLY | os.O_NONBLOCK)
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(SUPERVISES)),
        *(str(notes.path), textwrap.dedent(HAS_A_CHILD)),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert supervisor.stdout is not None
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await supervisor.stdout.readline() == b"ready\n"
    started = [*notes.pids("parent"), *notes.pids("child")]
    assert len(started) == 2
    assert all(alive(pid) for pid in started)
    supervisor.kill()
    await supervisor.wait()
    await end_of(reading)
    await gone(started)


async def end_of(pipe: int) -> None:
    """Returns when nobody has the pipe open for writing any more; closes it."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", buffering=0)
    )
    async with asyncio.timeout(LIMIT_SECONDS):
        assert await reader.read() == b""
    transport.close()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the guard through /proc")
async def test_a_guard_that_is_killed_is_replaced_and_knows_everything(
    notes: Notes, log: LogFile
) -> None:
    async with Supervisor([notes.process("deaf", DEAF)], log, notes.say) as supervisor:
        old = guards_of(os.getpid())
        assert len(old) == 1
        os.kill(old[0], signal.SIGKILL)
        async with asyncio.timeout(LIMIT_SECONDS):
            while not set(guards_of(os.getpid())) - set(old):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.01)
        supervisor.kill()


def guards_of(parent: int) -> list[int]:
    """Guards that run below a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(stat[1]) == parent and stat[0] != "Z" and b"endgroups" in command:
                found.append(int(entry.name))
    return found
