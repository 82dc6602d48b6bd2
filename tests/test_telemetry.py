from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from posthouse.telemetry import UNKNOWN_TOOL, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def test_the_names_that_dashboards_know(metrics: Metrics) -> None:
    metrics.run_ended("research", "completed", 12.0)
    metrics.agent_ended(4)
    metrics.tokens_used("gpt-4o", 30)
    metrics.tool_failed(UNKNOWN_TOOL, "unknown_tool")
    metrics.runs_ended_by_scripts(failed=2, cancelled=0)
    metrics.run_recovered()
    metrics.run_waited(0.002)
    metrics.stream_opened()
    metrics.stream_opened()
    metrics.stream_closed()
    text = metrics.render().decode()
    for line in (
        'workflow_duration_seconds_bucket{le="30.0",workflow_type="research"} 1.0',
        'agent_iterations_count_bucket{le="4.0"} 1.0',
        'llm_tokens_total{model="gpt-4o"} 30.0',
        'tool_call_errors_total{error_type="unknown_tool",tool="unknown"} 1.0',
        'workflow_status_total{status="completed"} 1.0',
        'workflow_status_total{status="failed"} 2.0',
        "runs_recovered_total 1.0",
        'queue_wait_seconds_bucket{le="0.005"} 1.0',
        "sse_clients 1.0",
    ):
        assert line in text.splitlines()
    for name in ("workflow_duration_seconds", "agent_iterations_count"):
        assert f"# TYPE {name} histogram" in text


def test_two_in_one_process_share_nothing(metrics: Metrics) -> None:
    metrics.agent_ended(1)
    assert b"agent_iterations_count_count 0.0" in Metrics(CollectorRegistry()).render()


def test_they_are_served_until_closed(metrics: Metrics) -> None:
    metrics.run_recovered()
    server = metrics.serve(0)
    url = f"http://127.0.0.1:{server.port}/metrics"
    with urlopen(url, timeout=5) as response:
        assert b"runs_recovered_total 1.0" in response.read()
    server.close()
    with pytest.raises(OSError, match="refused"):
        urlopen(url, timeout=5)


def test_a_taken_port_is_a_warning(metrics: Metrics) -> None:
    first = metrics.serve(0)
    assert first.port is not None
    with capture_logs() as lines:
        second = metrics.serve(first.port)
    assert (second.port, lines[0]["event"], lines[0]["log_level"]) == (
        None, "metrics_not_served", "warning",
    )  # fmt: skip
    second.close()
    first.close()
