"""Wrong use of the command: one line, exit code 2, nothing started."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from posthouse.embedded.lock import data_folder
from posthouse.embedded.ports import free_ports

LIMIT_SECONDS = 30


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


def refused(environment: dict[str, str], *words: str) -> str:
    """What standard error says; it has to be one line, with exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "posthouse.cli.main", *words],
        env=environment,
        cwd=environment["POSTHOUSE_CORPUS"],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 2, done
    assert done.stderr.startswith("posthouse: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("demo", "--depth", "bottomless"), "--depth"),
        (("up", "--sideways"), "--sideways"),
        (("down",), "down"),
    ],
)
def test_wrong_options(environment: dict[str, str], words: tuple[str, ...], said: str) -> None:
    assert said in refused(environment, *words)


def test_a_wrong_setting_is_named(environment: dict[str, str]) -> None:
    assert "POSTHOUSE_WORKERS" in refused(environment | {"POSTHOUSE_WORKERS": "many"}, "up")


def test_a_port_that_is_taken(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = refused(environment | {"POSTHOUSE_PORT": str(port)}, "up")
    assert f"127.0.0.1:{port}: it is in use; set POSTHOUSE_PORT" in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_data_folder_that_is_in_use(environment: dict[str, str], command: str) -> None:
    with data_folder(Path(environment["POSTHOUSE_DATA_DIR"])):
        assert f"(process {os.getpid()})" in refused(environment, command)
