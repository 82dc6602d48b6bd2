"""How a plan goes over the wire."""

from typing import Any

from api_app.money import usage_view
from api_app.schemas import error_view, time_view
from posthouse.control.plan import Node, Progress
from posthouse.events.types import head
from posthouse.runs.model import UsageTotals
from posthouse.workflows.plan import levels


def plan_view(run_id: str, progress: Progress) -> dict[str, Any]:
    """Nodes with their states and costs, the edges between them, and their ids by level for whoever draws them."""
    subtasks = progress.plan.subtasks
    return {
        "run_id": run_id,
        "on_failure": progress.plan.on_failure,
        "nodes": [_node_view(node) for node in progress.nodes],
        "edges": [{"from": before, "to": one.id} for one in subtasks for before in one.depends_on],
        "levels": levels(progress.plan),
    }


def _node_view(node: Node) -> dict[str, Any]:
    run = node.run
    return {
        "id": node.subtask.id,
        "agent": node.subtask.agent,
        "task": head(node.subtask.task),
        "depends_on": node.subtask.depends_on,
        "state": node.state,
        "run_id": run.run_id if run else None,
        "status": run.status if run else None,
        "wait_reason": run.wait_reason if run else None,
        "error": error_view(run) if run else None,
        "started_at": time_view(run.started_at if run else None),
        "ended_at": time_view(run.ended_at if run else None),
        "usage": usage_view(run.usage if run else UsageTotals()),
    }
