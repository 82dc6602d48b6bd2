"""Which processes run for which settings."""

import socket
from pathlib import Path

import pytest

from posthouse.cli.session import searched
from posthouse.embedded.ports import free_ports
from posthouse.embedded.stack import Layout, lay_out
from posthouse.errors import ConfigurationError
from posthouse.settings import Settings


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "page.md").write_text("# A page")
    return tmp_path / "corpus"


def settings(corpus: Path, **given: object) -> Settings:
    values = {
        "corpus": corpus,
        "data_dir": corpus.parent / "data",
        "port": free_ports(1)[0],
        **given,
    }
    return Settings(_env_file=None, **values)


def names(layout: Layout) -> list[str]:
    return [process.name for process in layout.processes]


def test_everything_runs_here_when_nothing_is_set(corpus: Path) -> None:
    given = settings(corpus)
    layout = lay_out(given)
    assert names(layout) == ["valkey", "stand-in", "api", "worker-1", "worker-2"]
    assert layout.stand_in
    assert layout.own_redis is None
    assert layout.api_url == f"http://127.0.0.1:{given.port}"
    valkey, stand_in, api, *workers = layout.processes
    url = api.env["REDIS_URL"]
    assert layout.model == (
        f"the stand-in model at http://127.0.0.1:{stand_in.argv[-1]}/v1, "
        "which is not a language model"
    )
    assert url == f"redis://127.0.0.1:{valkey.argv[valkey.argv.index('--port') + 1]}"
    # The API refuses a run's own models by the endpoints of its environment.
    assert api.env["OPENAI_BASE_URL"] == workers[0].env["OPENAI_BASE_URL"]
    for worker in workers:
        assert worker.env["REDIS_URL"] == url
        assert worker.env["OPENAI_MODEL"] == worker.env["OPENAI_API_KEY"] == "stand-in"
        assert worker.env["OPENAI_BASE_URL"] == f"http://127.0.0.1:{stand_in.argv[-1]}/v1"
        assert layout.joining.env.items() <= worker.env.items()
        assert worker.stop_seconds > given.drain_seconds
    assert len({worker.env["POSTHOUSE_METRICS_PORT"] for worker in workers}) == 2
    assert max(valkey.stage, stand_in.stage) < min(api.stage, workers[0].stage)


def test_with_redis_url_no_server_starts_and_its_password_is_not_shown(corpus: Path) -> None:
    url = "rediss://courier:secret@redis.example:6380/2"
    layout = lay_out(settings(corpus, redis_url=url))
    assert "valkey" not in names(layout)
    assert all(
        process.env["REDIS_URL"] == url
        for process in layout.processes
        if process.name != "stand-in"
    )
    assert layout.own_redis == url
    assert "courier" not in repr(layout.joining)
    assert layout.redis == "rediss://redis.example:6380/2"


def test_an_empty_value_counts_as_none(corpus: Path) -> None:
    layout = lay_out(settings(corpus, redis_url="", openai_api_key="", openai_base_url=""))
    assert names(layout)[:2] == ["valkey", "stand-in"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"openai_api_key": "k"}, "gpt-4o"),
        ({"openai_base_url": "http://me:pw@host/v1", "openai_model": "m"}, "m at http://host/v1"),
    ],
)
def test_with_a_key_or_an_address_the_real_model_is_used(
    corpus: Path, given: dict[str, str], words: str
) -> None:
    layout = lay_out(settings(corpus, **given))
    assert "stand-in" not in names(layout)
    assert not layout.stand_in
    assert layout.model == words
    assert not any(key.startswith("OPENAI") for key in layout.processes[-1].env)


@pytest.mark.parametrize("url", ["foo://", "redis://[", "redis://host:port", "localhost"])
def test_what_is_no_address_of_a_redis_is_an_error(corpus: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL: "):
        lay_out(settings(corpus, redis_url=url))


@pytest.mark.parametrize(
    "url",
    ["localhost:11434/v1", "ftp://host/v1", "http://", "http:///v1", "http://[", "http://h:p"],
)
def test_what_is_no_address_of_a_model_is_an_error(corpus: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^OPENAI_BASE_URL: it has to be http://"):
        lay_out(settings(corpus, openai_base_url=url))


def test_workers_take_the_metrics_ports_from_the_one_that_is_set(corpus: Path) -> None:
    layout = lay_out(settings(corpus, metrics_port=9100, workers=3))
    ports = [process.env.get("POSTHOUSE_METRICS_PORT") for process in layout.processes[-3:]]
    assert ports == ["9100", "9101", "9102"]


def test_a_port_that_is_taken_is_an_error_or_replaced(corpus: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = settings(corpus, port=server.getsockname()[1])
        words = rf"cannot listen on 127\.0\.0\.1:{given.port}: it is in use; set POSTHOUSE_PORT"
        with pytest.raises(ConfigurationError, match=words):
            lay_out(given)
        layout = lay_out(given, any_port=True)
        assert layout.api_url != f"http://127.0.0.1:{given.port}"


def test_listening_everywhere_is_reached_here(corpus: Path) -> None:
    given = settings(corpus, host="0.0.0.0")
    layout = lay_out(given)
    assert layout.api_url == f"http://127.0.0.1:{given.port}"
    assert layout.processes[2].env["POSTHOUSE_HOST"] == "0.0.0.0"


def test_what_is_searched_is_said_without_secrets(corpus: Path) -> None:
    plain = lay_out(settings(corpus))
    assert (plain.search, searched(plain)) == (None, ("Corpus", str(plain.corpus)))
    web = lay_out(settings(corpus, search=" Brave ", search_api_key="a-long-secret-key"))
    assert searched(web) == ("Search", "brave at https://api.search.brave.com")
    assert "a-long" not in repr(web)


def test_a_corpus_without_documents_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="POSTHOUSE_CORPUS: no Markdown"):
        lay_out(settings(tmp_path / "empty"))
