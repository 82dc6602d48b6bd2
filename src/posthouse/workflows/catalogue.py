"""The workflows that there are: ours and those of other packages."""

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from posthouse.registry import discover
from posthouse.workflows import library as built_in
from posthouse.workflows.definition import Workflow


def library(packages: Iterable[ModuleType] = ()) -> dict[str, Workflow[Any, Any]]:
    """Every definition by name.

    Raises ConfigurationError: a name twice, a module without a definition.
    """
    return discover((built_in, *packages), Workflow, lambda definition: definition.name)
