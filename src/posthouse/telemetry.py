"""Metrics in a registry that a composition root makes; dashboards read the names: for ever."""

import threading
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_TOOL = "unknown"

_RUN_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400)
_TURNS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 50, 100)
_QUEUE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

_log = structlog.get_logger(__name__)


def _model_counters(registry: CollectorRegistry) -> tuple[Counter, Counter]:
    tokens = Counter(
        "llm_tokens_total", "Tokens read and written by a model.", ["model"], registry=registry
    )
    cost = Counter(
        "llm_cost_usd_total",
        "What answers of a model cost, in USD; without a known price they are not in it.",
        ["model"],
        registry=registry,
    )
    return tokens, cost


class Metrics:
    """What posthouse counts and measures. No label takes a value that a model or a caller wrote."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._run_seconds = Histogram(
            "workflow_duration_seconds",
            "Time from a run's start to its end.",
            ["workflow_type"],
            buckets=_RUN_SECONDS,
            registry=registry,
        )
        self._turns = Histogram(
            "agent_iterations_count",
            "Turns that an agent took.",
            buckets=_TURNS,
            registry=registry,
        )
        self._tokens, self._cost = _model_counters(registry)
        self._tool_errors = Counter(
            "tool_call_errors_total",
            "Tool calls that failed.",
            ["tool", "error_type"],
            registry=registry,
        )
        self._statuses = Counter(
            "workflow_status_total",
            "Runs that came to a status, counted by the process that brought them to it or learnt of it.",
            ["status"],
            registry=registry,
        )
        self._recovered = Counter(
            "runs_recovered_total", "Runs taken over from a worker that died.", registry=registry
        )
        self._breakers = Counter(
            "model_breaker_opened_total",
            "Times that a model's endpoint was found dead and not asked for a while.",
            registry=registry,
        )
        self._clients = Gauge("sse_clients", "Event streams that are open.", registry=registry)
        self._queue_seconds = Histogram(
            "queue_wait_seconds",
            "Time from a run's enqueueing to its claim.",
            buckets=_QUEUE_SECONDS,
            registry=registry,
        )

    def run_accepted(self) -> None:
        """Counts a run that is now pending."""
        self._statuses.labels("pending").inc()

    def run_ended(self, workflow_type: str, status: str, seconds: float) -> None:
        """A run reached a terminal status, so long after its start."""
        self._run_seconds.labels(workflow_type).observe(seconds)
        self._statuses.labels(status).inc()

    def run_cancelled(self) -> None:
        """Counts a run that a caller ended."""
        self._statuses.labels("cancelled").inc()

    def runs_ended_by_scripts(self, *, failed: int, cancelled: int) -> None:
        """Counts runs that no process ended, by what a sweep tells of them."""
        for status, count in (("failed", failed), ("cancelled", cancelled)):
            if count:
                self._statuses.labels(status).inc(count)

    def agent_ended(self, turns: int) -> None:
        """An agent came to its end after so many turns."""
        self._turns.observe(turns)

    def tokens_used(self, model: str, count: int) -> None:
        """A model request took so many tokens, both ways together."""
        self._tokens.labels(model).inc(count)

    def model_cost(self, model: str, nano_usd: int) -> None:
        """A model request cost so much; 0 when its price is not known."""
        if nano_usd:
            self._cost.labels(model).inc(nano_usd / 1_000_000_000)

    def tool_failed(self, tool: str, error_type: str) -> None:
        """A tool call failed; a tool that does not exist goes by UNKNOWN_TOOL."""
        self._tool_errors.labels(tool, error_type).inc()

    def run_recovered(self) -> None:
        """A run was taken over from a worker that died."""
        self._recovered.inc()

    def breaker_opened(self) -> None:
        """A try of this process opened the breaker of a model's endpoint, or opened it again."""
        self._breakers.inc()

    def run_waited(self, seconds: float) -> None:
        """A run was claimed, so long after it had been enqueued."""
        self._queue_seconds.observe(seconds)

    def stream_opened(self) -> None:
        """A client began to read an event stream."""
        self._clients.inc()

    def stream_closed(self) -> None:
        """A client's event stream ended."""
        self._clients.dec()

    def render(self) -> bytes:
        """Everything, in Prometheus' text format (CONTENT_TYPE)."""
        return generate_latest(self._registry)

    def serve(self, port: int, host: str = "127.0.0.1") -> "MetricsServer":
        """Answers GET /metrics on a thread of its own; port 0 takes a free one.

        A port that is taken is a warning in the log and no server: measuring stops no work.
        """
        try:
            server, thread = start_http_server(port, host, self._registry)
        except OSError as error:
            _log.warning("metrics_not_served", host=host, port=port, reason=error.strerror)
            return MetricsServer()
        return MetricsServer(server, thread)


@dataclass(frozen=True)
class MetricsServer:
    """Where the metrics are served, if they are."""

    _server: WSGIServer | None = None
    _thread: threading.Thread | None = None

    @property
    def port(self) -> int | None:
        """The port that it listens on; None when it does not."""
        return None if self._server is None else self._server.server_port

    def close(self) -> None:
        """Stops serving; returns within half a second."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
