"""How one more worker joins a stack: what it has to be told, as a line to copy."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from posthouse.settings import Settings
from posthouse.tools.search import CORPUS

# Where they differ between workers, it matters which one has a run.
_ALIKE = (
    "max_agent_iterations",
    "agent_timeout_seconds",
    "workflow_ttl_seconds",
    "lease_seconds",
    "max_output_bytes",
    "max_run_steps",
    "max_run_events",
    "model_wait_seconds",
    "search",
    "models_smart",
    "models_fast",
    "prices",
)

_KEYS = {"ANTHROPIC_API_KEY": "anthropic_api_key", "POSTHOUSE_ENDPOINTS": "endpoints"}


@dataclass(frozen=True)
class Joining:
    """Settings for one more worker; `secrets` names those that it needs too and that are not shown."""

    env: Mapping[str, str]
    secrets: tuple[str, ...] = ()

    def line(self, python: str) -> str:
        """The whole line for a shell, with this Python."""
        given = (f"{name}={shlex.quote(value)}" for name, value in self.env.items())
        return " ".join((*given, shlex.quote(python), "-m worker_app"))


def joining(settings: Settings, own: Mapping[str, str], corpus: Path) -> Joining:
    """What a worker of these settings is told; `own` is what the stack chose by itself."""
    wanted = {"REDIS_URL": own["REDIS_URL"]}
    secrets = []
    if "OPENAI_BASE_URL" in own:
        wanted |= own
    else:
        wanted |= {"OPENAI_BASE_URL": settings.openai_base_url or ""}
        wanted |= {"OPENAI_MODEL": settings.openai_model}
        if settings.openai_api_key and settings.openai_api_key.get_secret_value():
            secrets.append("OPENAI_API_KEY")
    if _searches_the_web(settings):
        wanted |= {"POSTHOUSE_SEARCH_URL": settings.search_url or ""}
        if settings.search_api_key and settings.search_api_key.get_secret_value():
            secrets.append("POSTHOUSE_SEARCH_API_KEY")
    for name, key in _KEYS.items():
        value = getattr(settings, key)
        if value and value.get_secret_value():
            secrets.append(name)
    for name in ("REDIS_URL", "OPENAI_BASE_URL", "POSTHOUSE_SEARCH_URL"):
        if name in wanted and without_secrets(wanted[name]) != wanted[name]:
            secrets.append(name)
            del wanted[name]
    return Joining(
        {name: value for name, value in wanted.items() if value} | _further(settings, corpus),
        tuple(sorted(secrets, reverse=True)),
    )


def _searches_the_web(settings: Settings) -> bool:
    return settings.search.strip().lower() not in ("", CORPUS)


def _further(settings: Settings, corpus: Path) -> dict[str, str]:
    """Settings that are not as a worker that is started here would have them by itself."""
    names = {name: str(field.validation_alias) for name, field in Settings.model_fields.items()}
    given = [name for name in _ALIKE if name in settings.model_fields_set]
    further = {names[name]: str(getattr(settings, name)) for name in given}
    if settings.libraries:
        further[names["libraries"]] = settings.libraries
        further["PYTHONPATH"] = _import_path()
    if corpus != Path("docs").resolve():
        further[names["corpus"]] = str(corpus)
    if settings.metrics_port:
        further[names["metrics_port"]] = str(settings.metrics_port + settings.workers)
    if any(name.lower() in ("http_proxy", "all_proxy") for name in os.environ):
        further["NO_PROXY"] = os.environ.get("NO_PROXY") or "127.0.0.1,localhost"
    return further


def _import_path() -> str:
    """Where this one finds libraries, for a worker that is started in any folder."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = (os.path.abspath(folder) for folder in ("", *given))
    return os.pathsep.join(dict.fromkeys(folders))


def without_secrets(url: str) -> str:
    """An address that may be shown: no user, no password, no query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
