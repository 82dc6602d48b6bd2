async def test_live_ready_and_metrics(client):
    assert (await client.get("/health/live")).json() == {"status": "live"}
    assert (await client.get("/health/ready")).json() == {"status": "ready"}
    metrics = await client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in (
        "workflow_duration_seconds",
        "agent_iterations_count",
        "llm_tokens",
        "tool_call_errors",
        "workflow_status",
    ):
        assert f"# TYPE {name}" in metrics.text, name
