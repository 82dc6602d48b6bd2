"""`posthouse doctor`: its lines and its exit codes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from posthouse.storage import keys
from tests.starts import Starter, run_python

COMMAND = "posthouse.cli.main"
GONE = "01K00000000000000000000000"
Doctor = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}


@pytest.fixture
def doctor(starter: Starter, tmp_path: Path) -> Doctor:
    """Runs the command with the environment and these words."""
    return lambda environment, *words: starter.run(
        COMMAND, "doctor", *words, env=environment, cwd=tmp_path
    )


def test_nothing_found_then_found_then_mended(
    environment: dict[str, str], doctor: Doctor, tmp_path: Path, valkey: Any
) -> None:
    environment["REDIS_URL"] = valkey.url
    clean = run_python("-m", COMMAND, "doctor", env=environment, cwd=tmp_path)
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, "0 findings\n", "")

    with Redis.from_url(valkey.url) as redis:
        redis.zadd(keys.DUE, {GONE: 1})
        redis.set(keys.journal(GONE), "1")
        redis.hset(keys.idempotency("default", "key"), "fingerprint", "f")
        lines = {f"stale_due due {GONE}", f"orphan run:{GONE}:journal"}

        found = doctor(environment)
        assert found.returncode == 1, found
        *said, last = found.stdout.splitlines()
        assert (set(said), last) == (lines, "2 findings")
        assert redis.dbsize() == 3

        mended = doctor(environment, "--fix")
        assert mended.returncode == 0, mended
        *said, last = mended.stdout.splitlines()
        assert set(said) == {
            f"stale_due due {GONE}: removed",
            f"orphan run:{GONE}:journal: deleted",
        }
        assert last == "2 findings, 2 mended"
        assert redis.keys() == [keys.idempotency("default", "key").encode()]
    assert doctor(environment).returncode == 0


def test_what_is_left_is_told_by_the_exit_code(
    environment: dict[str, str], doctor: Doctor, valkey: Any
) -> None:
    environment["REDIS_URL"] = valkey.url
    with Redis.from_url(valkey.url) as redis:
        redis.hset(keys.run(GONE), "v", "1")
    left = doctor(environment, "--fix")
    assert left.returncode == 1
    assert left.stdout == f"unreadable run:{GONE}\n1 finding, 0 mended\n"


def test_a_redis_that_may_lose_runs_is_looked_at_all_the_same(
    environment: dict[str, str], doctor: Doctor, valkey: Any
) -> None:
    environment["REDIS_URL"] = valkey.url
    with Redis.from_url(valkey.url) as redis:
        redis.config_set("maxmemory-policy", "allkeys-lru")
    done = doctor(environment)
    assert (done.returncode, done.stdout) == (0, "0 findings\n")
    assert done.stderr.startswith(f"posthouse: Redis at {valkey.url} may throw runs away")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "REDIS_URL is not set"),
        ("redis://me:secret@127.0.0.1:1", "Redis at redis://127.0.0.1:1 does not answer"),
        ("foo://", "REDIS_URL: "),
    ],
)
def test_without_a_redis_it_is_one_line_and_exit_code_2(
    environment: dict[str, str], doctor: Doctor, url: str, said: str
) -> None:
    done = doctor(environment | ({"REDIS_URL": url} if url else {}))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"posthouse: {said}")
    assert done.stderr.count("\n") == 1
