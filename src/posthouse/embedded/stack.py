"""The stack of one machine: which processes run for these settings, and where they are found."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from posthouse.embedded.joining import Joining, joining, without_secrets
from posthouse.embedded.lock import data_folder
from posthouse.embedded.logfile import Echo, LogFile
from posthouse.embedded.ports import free_ports, obstacle
from posthouse.embedded.probes import answers_http
from posthouse.embedded.process import Process, Say
from posthouse.embedded.supervisor import Supervisor
from posthouse.embedded.valkey import EmbeddedValkey, find_server
from posthouse.errors import ConfigurationError
from posthouse.settings import Settings
from posthouse.storage.connect import connect
from posthouse.tools.search import chosen_engine

LOCAL = "127.0.0.1"
STAND_IN = "stand-in"

# What a worker may need beyond its drain: the last commit and the way out.
_DRAIN_GRACE_SECONDS = 5.0
_WORKER_START_SECONDS = 15.0
_ANYWHERE = {"0.0.0.0": LOCAL, "::": "::1"}
_DOCUMENTS = frozenset({".md", ".txt", ".html"})


@dataclass(frozen=True)
class Layout:
    """What runs and where; `redis`, `model` and `search` are words for a person, without secrets.

    `own_redis` is the address of the Redis that was set; None when the embedded one runs. `search`
    is the web search engine; None when the corpus is searched.
    """

    processes: tuple[Process, ...]
    api_url: str
    redis: str
    model: str
    stand_in: bool
    corpus: Path
    data_dir: Path
    log: Path
    metrics_urls: tuple[str, ...]
    joining: Joining
    search: str | None = None
    own_redis: str | None = field(default=None, repr=False)


def lay_out(settings: Settings, *, any_port: bool = False, slots: int | None = None) -> Layout:
    """Decides what has to run. Raises ConfigurationError when a setting cannot be followed.

    With `any_port` a port that is taken is replaced by a free one; `slots` is for workers whose slots were not set.
    """
    host = _ANYWHERE.get(settings.host, settings.host)
    port = _api_port(settings, any_port)
    data_dir = settings.data_dir.resolve()
    corpus, search = _corpus(settings), _search(settings)
    redis_port, model_port, *worker_ports = free_ports(2 + settings.workers)
    models, model_env, model = _model(settings, model_port)
    # Last, as it makes the folder of the data: nothing is made for settings that are refused.
    stores, redis_env, redis = _redis(settings, data_dir, redis_port)
    shared = _shared_env(settings, corpus, data_dir) | redis_env
    if slots is not None and "worker_slots" not in settings.model_fields_set:
        shared |= {"POSTHOUSE_WORKER_SLOTS": str(slots)}
    api = Process(
        name="api",
        argv=_module("api_app"),
        env=shared | model_env | {"POSTHOUSE_HOST": settings.host, "POSTHOUSE_PORT": str(port)},
        ready=answers_http(host, port, "/health/ready"),
        stage=1,
    )
    if settings.metrics_port:
        worker_ports = list(range(settings.metrics_port, settings.metrics_port + settings.workers))
    workers = [
        _worker(settings, number, port, shared | model_env)
        for number, port in enumerate(worker_ports, start=1)
    ]
    api_url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return Layout(
        processes=(*stores, *models, api, *workers),
        api_url=api_url,
        redis=redis,
        model=model,
        stand_in=bool(models),
        corpus=corpus,
        data_dir=data_dir,
        log=data_dir / "posthouse.log",
        metrics_urls=(
            f"{api_url}/metrics",
            *(f"http://{LOCAL}:{port}/metrics" for port in worker_ports),
        ),
        joining=joining(settings, redis_env | model_env, corpus),
        search=search,
        own_redis=None if stores else redis_env["REDIS_URL"],
    )


def _api_port(settings: Settings, any_port: bool) -> int:
    reason = obstacle(settings.host, settings.port)
    if reason is None:
        return settings.port
    if any_port and obstacle(settings.host, 0) is None:
        return free_ports(1, settings.host)[0]
    raise ConfigurationError(
        f"cannot listen on {settings.host}:{settings.port}: {reason}; "
        "set POSTHOUSE_PORT (or POSTHOUSE_HOST) to another"
    )


def _corpus(settings: Settings) -> Path:
    """The folder to search: the one that was set, else the project's own docs."""
    candidates = [settings.corpus]
    if "corpus" not in settings.model_fields_set:
        candidates.append(Path(__file__).resolve().parents[3] / "docs")
    for folder in candidates:
        if folder.is_dir() and _has_documents(folder):
            return folder.resolve()
    raise ConfigurationError(
        f"POSTHOUSE_CORPUS: no Markdown, text or HTML files in {settings.corpus}; "
        "set it to a folder that has some"
    )


def _search(settings: Settings) -> str | None:
    """The engine that is searched with, as a worker will choose it, and where it is asked."""
    key = settings.search_api_key.get_secret_value() if settings.search_api_key else None
    chosen = chosen_engine(settings.search, key=key, url=settings.search_url)
    return f"{chosen.engine.name} at {chosen.url}" if chosen else None


def _has_documents(folder: Path) -> bool:
    return any(path.suffix.lower() in _DOCUMENTS for path in folder.rglob("*"))


def _redis(
    settings: Settings, data_dir: Path, port: int
) -> tuple[tuple[Process, ...], dict[str, str], str]:
    if "redis_url" in settings.model_fields_set and settings.redis_url:
        connect(settings.redis_url)  # refuses what is no address of a Redis
        return (), {"REDIS_URL": settings.redis_url}, without_secrets(settings.redis_url)
    valkey = EmbeddedValkey(find_server(), data_dir / "valkey", port)
    return (valkey.process(),), {"REDIS_URL": valkey.url}, f"{valkey.url} (embedded)"


def _model(settings: Settings, port: int) -> tuple[tuple[Process, ...], dict[str, str], str]:
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else ""
    if key or settings.openai_base_url:
        where = _endpoint(settings.openai_base_url) if settings.openai_base_url else ""
        return (), {}, f"{settings.openai_model} at {where}" if where else settings.openai_model
    if tiers := _tiers_elsewhere(settings):
        return (), {}, tiers
    process = Process(
        name=STAND_IN,
        argv=_module("posthouse.embedded.standin", "--host", LOCAL, "--port", str(port)),
        env=_unproxied(),
        ready=answers_http(LOCAL, port, "/v1/models"),
    )
    url = f"http://{LOCAL}:{port}/v1"
    env = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": STAND_IN, "OPENAI_MODEL": STAND_IN}
    return (process,), env, f"the stand-in model at {url}, which is not a language model"


def _tiers_elsewhere(settings: Settings) -> str:
    """The models of both tiers when none of them is at OpenAI's endpoint, which then is not needed; else ""."""
    tiers = (settings.models_smart.strip(), settings.models_fast.strip())
    named = [one.strip() for tier in tiers for one in tier.split(",")]
    if not all(tiers) or any(one.startswith("openai:") for one in named):
        return ""
    return ", ".join(dict.fromkeys(named))


def _endpoint(url: str) -> str:
    """The address of a model without its secrets. Raises ConfigurationError when it is none."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigurationError(
            "OPENAI_BASE_URL: it has to be http://host/... or https://host/..."
        )
    return without_secrets(url)


def _worker(settings: Settings, number: int, port: int, env: dict[str, str]) -> Process:
    return Process(
        name=f"worker-{number}",
        argv=_module("worker_app"),
        env=env | {"POSTHOUSE_METRICS_PORT": str(port)},
        ready=answers_http(LOCAL, port, "/metrics"),
        stage=1,
        start_seconds=_WORKER_START_SECONDS,
        stop_seconds=settings.drain_seconds + _DRAIN_GRACE_SECONDS,
        required=False,
    )


def _module(name: str, *options: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *options)


def _shared_env(settings: Settings, corpus: Path, data_dir: Path) -> dict[str, str]:
    return _unproxied() | {
        "POSTHOUSE_CORPUS": str(corpus),
        "POSTHOUSE_DATA_DIR": str(data_dir),
        "POSTHOUSE_LIBRARIES": settings.libraries,
        "PYTHONUNBUFFERED": "1",
    }


def _unproxied() -> dict[str, str]:
    """No proxy stands between two processes of one machine, whatever the environment says."""
    known = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    names = ",".join(filter(None, (known, LOCAL, "localhost")))
    return {"NO_PROXY": names, "no_proxy": names}


@contextlib.contextmanager
def opened(layout: Layout, say: Say, echo: Echo | None = None) -> Iterator[Supervisor]:
    """The stack's supervisor, with its data folder locked; nothing runs until it is started.

    Raises ConfigurationError when the folder cannot be used or another stack uses it.
    """
    with data_folder(layout.data_dir) as lock, LogFile(layout.log, echo) as log:
        yield Supervisor(layout.processes, log, say, keep_open=(lock,))
