"""What one more worker of a stack is told."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from posthouse.embedded.joining import Joining, joining
from posthouse.settings import Settings

HERE = Path("docs").resolve()
REDIS = {"REDIS_URL": "redis://127.0.0.1:20001"}
STAND_IN = {
    "OPENAI_BASE_URL": "http://127.0.0.1:20002/v1",
    "OPENAI_API_KEY": "stand-in",
    "OPENAI_MODEL": "stand-in",
}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def told(own: Mapping[str, str], corpus: Path = HERE, **given: object) -> Joining:
    return joining(Settings(_env_file=None, **given), own, corpus)


def test_the_stores_and_the_stand_in_of_this_stack() -> None:
    found = told(REDIS | STAND_IN)
    assert found == Joining(REDIS | STAND_IN)
    assert found.line(".venv/bin/python") == (
        "REDIS_URL=redis://127.0.0.1:20001 OPENAI_BASE_URL=http://127.0.0.1:20002/v1 "
        "OPENAI_API_KEY=stand-in OPENAI_MODEL=stand-in .venv/bin/python -m worker_app"
    )


def test_secrets_are_named_and_not_shown() -> None:
    own = {"REDIS_URL": "redis://:secret@redis.example:6379"}
    found = told(own, openai_api_key="secret", openai_base_url="http://me:secret@host/v1")
    assert found.secrets == ("REDIS_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY")
    assert found.env == {"OPENAI_MODEL": "gpt-4o"}


def test_a_model_of_ones_own_is_named() -> None:
    found = told(REDIS, openai_base_url="http://host/v1", openai_model="m")
    assert found == Joining(REDIS | {"OPENAI_BASE_URL": "http://host/v1", "OPENAI_MODEL": "m"})


def test_what_has_to_be_alike_on_all_workers_is_told_where_it_was_set(tmp_path: Path) -> None:
    corpus = tmp_path / "a folder"
    found = told(REDIS | STAND_IN, corpus, lease_seconds=2, metrics_port=9100, workers=3)
    more = {
        "POSTHOUSE_LEASE_SECONDS": "2.0",
        "POSTHOUSE_CORPUS": str(corpus),
        "POSTHOUSE_METRICS_PORT": "9103",
    }
    assert found.env == REDIS | STAND_IN | more
    assert f"POSTHOUSE_CORPUS={corpus}" in shlex.split(found.line("python"))


def test_the_search_is_told_and_its_key_is_named() -> None:
    given = {"search": "brave", "search_url": "http://gate/brave", "model_wait_seconds": 60}
    found = told(REDIS | STAND_IN, **given, search_api_key="secret")
    more = {
        "POSTHOUSE_SEARCH": "brave",
        "POSTHOUSE_SEARCH_URL": "http://gate/brave",
        "POSTHOUSE_MODEL_WAIT_SECONDS": "60.0",
    }
    assert found == Joining(REDIS | STAND_IN | more, ("POSTHOUSE_SEARCH_API_KEY",))
    hidden = told(REDIS | STAND_IN, search="searxng", search_url="http://me:secret@host")
    assert hidden == Joining(
        REDIS | STAND_IN | {"POSTHOUSE_SEARCH": "searxng"}, ("POSTHOUSE_SEARCH_URL",)
    )


def test_of_an_engine_that_is_not_asked_nothing_is_told() -> None:
    found = told(REDIS | STAND_IN, search_url="http://me:secret@host", search_api_key="secret")
    assert found == Joining(REDIS | STAND_IN)


@pytest.mark.parametrize(
    ("given", "folders"),
    [(None, ["."]), ("", ["."]), ("examples::/shelf:.", [".", "examples", "/shelf"])],
)
def test_libraries_are_found_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, given: str | None, folders: list[str]
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTHONPATH", given)
    env = told(REDIS | STAND_IN, libraries="post_office").env
    assert env["POSTHOUSE_LIBRARIES"] == "post_office"
    assert env["PYTHONPATH"] == ":".join(os.path.abspath(folder) for folder in folders)


def test_no_proxy_stands_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert told(REDIS | STAND_IN).env["NO_PROXY"] == "127.0.0.1,localhost"
