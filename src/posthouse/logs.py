"""JSON lines on stderr, the run id on each, secrets on none; other libraries' logs too."""

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO

import structlog
from structlog.contextvars import bound_contextvars
from structlog.typing import Processor, WrappedLogger

HIDDEN = "***"

_SECRET_KEY = re.compile(
    r"(?:^|[_.-])(?:api[_-]?key|authorization|password|passwd|secret|token|cookie)$", re.IGNORECASE
)
# Each begins with what is rarely there and looks at no character twice: a line may hold a whole page.
_SECRET_TEXT = (
    (re.compile(r"sk-(?<!\wsk-)[A-Za-z0-9_*-]{8,}"), f"sk-{HIDDEN}"),
    (re.compile(r"://(?:[^\s/@]*+@)++"), f"://{HIDDEN}@"),
    (re.compile(r"([?&](?:sentinel_)?+(?:password|username)=)[^\s&#]++"), rf"\1{HIDDEN}"),
    (
        re.compile(r"([Bb](?<!\w[Bb])(?i:earer|asic))\s++(?=[^\s\d]*+\d)[A-Za-z0-9._~+/=-]{8,}"),
        rf"\1 {HIDDEN}",
    ),
)

# A shorter key is a word, such as the stand-in's, and hiding a word hides the log.
SECRET_LENGTH = 12
# These write a line per request or per job, which ours say better.
_QUIET = ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "anthropic", "asyncio", "arq")
_REROUTED = ("uvicorn", "uvicorn.error", "uvicorn.access", "arq", "redis", "openai", "anthropic")


def configure_logs(
    level: str, *, process: str, secrets: Iterable[str] = (), stream: TextIO | None = None
) -> None:
    """From now on every log line of this process is one JSON object on stderr (or `stream`).

    `level` is debug, info, warning or error; `process` is what the lines call this process; no
    line shows one of the `secrets`. A later call replaces this. uvicorn needs `log_config=None`.
    """
    shared = _shared(process)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                _renderer(secrets),
            ],
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    _route_everything_to(handler, level.upper())


@contextmanager
def bind_run(run_id: str) -> Iterator[None]:
    """Every line that is logged inside, also by tasks started inside, carries the run id."""
    with bound_contextvars(run_id=run_id):
        yield


def redact(
    _logger: WrappedLogger, _method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """The line with secrets hidden: by a field's name, and by what they look like in any text."""
    return {key: _hidden(key, value) for key, value in line.items()}


def _hidden(key: str, value: Any) -> Any:
    if value and _SECRET_KEY.search(key):
        return HIDDEN
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, Mapping):
        return {str(inner): _hidden(str(inner), deep) for inner, deep in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_hidden("", item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _clean(repr(value))


def _clean(text: str) -> str:
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _renderer(secrets: Iterable[str]) -> Processor:
    json_renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    known = [secret for secret in secrets if len(secret) >= SECRET_LENGTH]

    def render(logger: WrappedLogger, method: str, line: MutableMapping[str, Any]) -> str:
        text = str(json_renderer(logger, method, line))
        for secret in known:
            text = text.replace(secret, HIDDEN)
        return text

    return render


def _shared(process: str) -> list[Processor]:
    def add_process(
        _logger: WrappedLogger, _method: str, line: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        line.setdefault("process", process)
        return line

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_process,
    ]


def _route_everything_to(handler: logging.Handler, level: str) -> None:
    root = logging.getLogger()
    for former in root.handlers[:]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _REROUTED:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
