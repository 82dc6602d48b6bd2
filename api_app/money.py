"""What runs take and may take, as it is shown: whole nano-USD, and the same in USD as a decimal text."""

from collections.abc import Mapping
from typing import Any

from posthouse.budget.model import NANO, BudgetState
from posthouse.control.usage import Account
from posthouse.journal.model import Usage
from posthouse.runs.model import UsageTotals


def usd(nano: int) -> str:
    """Nano-USD in USD, exactly."""
    return f"{nano // NANO}.{nano % NANO:09d}"


def usage_view(usage: Usage | UsageTotals) -> dict[str, Any]:
    """What something took; `usd_complete` is false when a model in it has no known price."""
    return {
        **{name: getattr(usage, name) for name in UsageTotals.model_fields},
        "usd": usd(usage.nano_usd),
        "wasted_usd": usd(usage.wasted_nano_usd),
        "usd_complete": usage.unpriced_calls == 0,
    }


def budget_view(budget: BudgetState | None) -> dict[str, Any] | None:
    """A budget as it stands; None when there is none."""
    if budget is None:
        return None
    return {
        "limits": _amounts(budget.limits),
        "spent": _amounts(budget.spent),
        "reserved": _amounts(budget.reserved),
        "lost": _amounts(budget.lost),
        "left": _amounts(budget.left),
        "percent": budget.percent,
        "on_exceeded": budget.on_exceeded,
    }


def account_view(run_id: str, account: Account, budget: BudgetState | None) -> dict[str, Any]:
    """What a run and all below it took, and of what."""
    total = account.total
    return {
        "run_id": run_id,
        "total": usage_view(total),
        "by_agent": [
            {"agent": agent} | usage_view(usage) for agent, usage in account.by_agent.items()
        ],
        "by_model": [
            {"model": model} | usage_view(usage) for model, usage in account.by_model.items()
        ],
        "by_subtask": [
            {
                "run_id": one.run_id,
                "subtask": one.subtask,
                "parent": one.parent,
                "workflow": one.workflow,
                "status": one.status,
            }
            | usage_view(one.usage)
            for one in account.by_run
        ],
        "wasted": {
            "tries": _amounts({"tokens": total.wasted_tokens, "nano_usd": total.wasted_nano_usd}),
            "retries": usage_view(account.set_aside),
            "crashes": None if budget is None else _amounts(budget.lost),
        },
        "budget": budget_view(budget),
    }


def _amounts(amounts: Mapping[str, int]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, amount in amounts.items():
        if name == "ms":
            shown["seconds"] = amount / 1000
        else:
            shown[name] = amount
        if name == "nano_usd":
            shown["usd"] = usd(amount)
    return shown
