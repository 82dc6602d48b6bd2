"""Wrong use of the command: one line, exit code 2, nothing started."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from posthouse.embedded.lock import data_folder
from posthouse.embedded.ports import free_ports
from tests.starts import Starter, run_python

COMMAND = "posthouse.cli.main"
LIMIT_SECONDS = 30
Refused = Callable[..., str]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "page.md").write_text("# A page")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "POSTHOUSE_CORPUS": str(tmp_path / "corpus"),
        "POSTHOUSE_DATA_DIR": str(tmp_path / "data"),
        "POSTHOUSE_PORT": str(free_ports(1)[0]),
    }


@pytest.fixture
def refused(starter: Starter) -> Refused:
    """Starts the command and gives its standard error: one line, with exit code 2."""

    def start(environment: dict[str, str], *words: str) -> str:
        folder = Path(environment["POSTHOUSE_CORPUS"])
        done = starter.run(COMMAND, *words, env=environment, cwd=folder)
        assert done.returncode == 2, done
        assert done.stderr.startswith("posthouse: ")
        assert done.stderr.count("\n") == 1
        return done.stderr

    return start


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("demo", "--depth", "bottomless"), "--depth"),
        (("up", "--sideways"), "--sideways"),
        (("down",), "down"),
    ],
)
def test_wrong_options(
    environment: dict[str, str], refused: Refused, words: tuple[str, ...], said: str
) -> None:
    assert said in refused(environment, *words)


def test_a_wrong_setting_is_named(environment: dict[str, str], refused: Refused) -> None:
    assert "POSTHOUSE_WORKERS" in refused(environment | {"POSTHOUSE_WORKERS": "many"}, "up")


@pytest.mark.parametrize("command", ["up", "demo"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"REDIS_URL": "foo://"}, "posthouse: REDIS_URL: "),
        ({"OPENAI_BASE_URL": "localhost:11434/v1"}, "posthouse: OPENAI_BASE_URL: it has to be "),
        (
            {"REDIS_URL": "redis://127.0.0.1:1"},
            "posthouse: Redis at redis://127.0.0.1:1 does not answer (connection refused)\n",
        ),
    ],
)
def test_an_address_that_leads_nowhere(
    environment: dict[str, str],
    refused: Refused,
    tmp_path: Path,
    command: str,
    given: dict[str, str],
    said: str,
) -> None:
    assert refused(environment | given, command).startswith(said)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["up", "demo"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"POSTHOUSE_SEARCH": "bing"}, "POSTHOUSE_SEARCH: 'bing' is none of corpus, brave, "),
        (
            {"POSTHOUSE_SEARCH": "brave"},
            "POSTHOUSE_SEARCH=brave needs POSTHOUSE_SEARCH_API_KEY\n",
        ),
        ({"POSTHOUSE_SEARCH": "searxng"}, "POSTHOUSE_SEARCH=searxng needs POSTHOUSE_SEARCH_URL"),
    ],
)
def test_a_search_that_cannot_be_used(
    environment: dict[str, str],
    refused: Refused,
    tmp_path: Path,
    command: str,
    given: dict[str, str],
    said: str,
) -> None:
    assert refused(environment | given, command).startswith(f"posthouse: {said}")
    assert not (tmp_path / "data").exists()


BAD_TOOL = """
from posthouse.tools.define import tool

@tool
async def weigh(letter) -> str:
    '''Weighs.'''
"""


@pytest.mark.parametrize("command", ["up", "demo"])
@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (
            "nowhere",
            "library 'nowhere': there is no package 'nowhere'; Python looks in PYTHONPATH, "
            "in the current folder and among what is installed\n",
        ),
        ("no-where", "POSTHOUSE_LIBRARIES: 'no-where' names no package\n"),
        ("mine", "mine.tools.weigh: tool 'weigh': annotate 'letter' with its type\n"),
    ],
)
def test_a_library_that_cannot_be_used(
    environment: dict[str, str],
    refused: Refused,
    tmp_path: Path,
    command: str,
    listed: str,
    said: str,
) -> None:
    file = Path(environment["POSTHOUSE_CORPUS"]) / "mine" / "tools" / "weigh.py"
    file.parent.mkdir(parents=True)
    file.write_text(BAD_TOOL)
    line = refused(environment | {"POSTHOUSE_LIBRARIES": listed}, command)
    assert line == f"posthouse: {said}"
    assert not (tmp_path / "data").exists()


def test_a_library_where_it_is_started_is_found_by_an_installed_command_too(
    environment: dict[str, str], tmp_path: Path
) -> None:
    corpus = Path(environment["POSTHOUSE_CORPUS"])
    (corpus / "mine" / "tools").mkdir(parents=True)
    script = tmp_path / "bin" / "command.py"
    script.parent.mkdir()
    script.write_text("from posthouse.cli.main import main\nmain()\n")
    env = environment | {"POSTHOUSE_LIBRARIES": "mine", "REDIS_URL": "foo://"}
    done = run_python(str(script), "up", env=env, cwd=corpus)
    assert done.stderr.startswith("posthouse: REDIS_URL: "), done.stderr


@pytest.mark.parametrize(
    ("words", "said"), [((), r"Usage: posthouse "), (("--version",), r"\Aposthouse \d+\.\d+.*\n\Z")]
)
def test_alone_it_helps_and_it_tells_its_version(
    environment: dict[str, str], words: tuple[str, ...], said: str
) -> None:
    folder = Path(environment["POSTHOUSE_CORPUS"])
    done = run_python("-m", COMMAND, *words, env=environment, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(said, done.stdout)


def test_a_port_that_is_taken(
    environment: dict[str, str], refused: Refused, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = refused(environment | {"POSTHOUSE_PORT": str(port)}, "up")
    assert f"127.0.0.1:{port}: it is in use; set POSTHOUSE_PORT" in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_data_folder_that_is_in_use(
    environment: dict[str, str], refused: Refused, command: str
) -> None:
    with data_folder(Path(environment["POSTHOUSE_DATA_DIR"])):
        assert f"(process {os.getpid()})" in refused(environment, command)


def test_ctrl_c_while_a_redis_is_looked_at_is_no_fault(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(LIMIT_SECONDS)
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "posthouse.cli.main", "up"],
            env=environment | {"REDIS_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # What a shell starts in the background ignores Ctrl-C, and so do its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        with process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=LIMIT_SECONDS)
            connection.close()
    assert (process.returncode, said) == (130, b"")
