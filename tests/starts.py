"""`python -m` to its end, and in a tenth of the time: forked from a process that has the module imported.

A start costs a second of imports and a refusal nothing else; hundreds of them are most of what a test run would do.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LIMIT_SECONDS = 30
_DIE_WITH_PARENT = 1
# What a module needs, without itself where it is not meant to be imported.
_BROUGHT_BY = {"worker_app": "worker_app.main", "api_app": "api_app.main"}


class Starter:
    """Starts modules with the environment and in the folder that are given; forks them if `forked`."""

    def __init__(self, folder: Path, *, forked: bool) -> None:
        # A fork without exec is safe where nothing of the system's own started a thread.
        self._forked = forked and sys.platform == "linux"
        self._folder = folder
        self._parents: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        for parent in self._parents.values():
            parent.communicate()

    def run(
        self, module: str, *words: str, env: Mapping[str, str], cwd: Path
    ) -> subprocess.CompletedProcess[str]:
        """Exit code, standard output and standard error; one that takes too long is killed."""
        if self._forked:
            return self._fork(module, words, dict(env), cwd)
        return run_python("-m", module, *words, env=env, cwd=cwd)

    def _fork(
        self, module: str, words: tuple[str, ...], env: dict[str, str], cwd: Path
    ) -> subprocess.CompletedProcess[str]:
        parent = self._parents.get(module) or self._parents.setdefault(module, _parent(module))
        assert parent.stdin is not None
        assert parent.stdout is not None
        out, err = self._folder / "out", self._folder / "err"
        order = {"words": words, "env": env, "cwd": str(cwd), "out": str(out), "err": str(err)}
        parent.stdin.write(json.dumps(order) + "\n")
        parent.stdin.flush()
        code = int(parent.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


def run_python(*words: str, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same with a process of its own from the start."""
    return subprocess.run(
        [sys.executable, *words],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def _parent(module: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.starts", module],
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _become(module: str, order: dict[str, str], places: list[str]) -> None:
    """Everything that the interpreter sets before it runs a module."""
    _die_with_parent()
    signal.alarm(LIMIT_SECONDS)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [order["cwd"], *given, *places]
    sys.argv[:] = [module, *order["words"]]
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.close(nothing)
    importlib.invalidate_caches()
    # Else Python warns that it runs what is imported already.
    sys.modules.pop(module if "." in module else f"{module}.__main__", None)


def _run(module: str, order: dict[str, str], places: list[str]) -> int:
    try:
        _become(module, order, places)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def main(module: str) -> None:
    """Forks for each line on standard input, and says on standard output how it ended."""
    _die_with_parent()
    own = set(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    places = [place for place in sys.path[1:] if place not in own]
    importlib.import_module(_BROUGHT_BY.get(module, module))
    gc.freeze()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = _run(module, json.loads(line), places)
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
