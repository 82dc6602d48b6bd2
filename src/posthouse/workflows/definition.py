"""What a workflow is: a name, a version, an input and an output model, and a plain async function."""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from pydantic import BaseModel

from posthouse.errors import ConfigurationError, RunCode
from posthouse.registry import checked_name
from posthouse.workflows.context import RunContext

I = TypeVar("I", bound=BaseModel)  # noqa: E741 - input
O = TypeVar("O", bound=BaseModel)  # noqa: E741 - output
OutputModel = TypeVar("OutputModel", bound=BaseModel, covariant=True)


@dataclass(frozen=True)
class Incomplete(Generic[OutputModel]):
    """What a workflow returns when a limit stopped it: the partial output, and why."""

    output: OutputModel
    code: RunCode
    message: str


@dataclass(frozen=True)
class Workflow(Generic[I, O]):
    """A registered definition; (name, version) is what a run is of."""

    name: str
    version: int
    description: str
    input_model: type[I]
    output_model: type[O]
    function: Callable[[RunContext, I], Awaitable[O | Incomplete[O]]]

    def __post_init__(self) -> None:
        checked_name("workflow", self.name)


Function = Callable[[RunContext, I], Awaitable[O | Incomplete[O]]]


def workflow(name: str, *, version: int = 1) -> Callable[[Function[I, O]], Workflow[I, O]]:
    """Makes a definition of an async function `(ctx, request: Model) -> Model | Incomplete[Model]`.

    Its docstring's first line is the description. Raises ConfigurationError when the annotations do not say the models.
    """

    def define(function: Function[I, O]) -> Workflow[I, O]:
        hints = get_type_hints(function)
        answer = hints.pop("return", None)
        inputs = [hint for hint in hints.values() if _is_model(hint)]
        outputs = [hint for hint in (get_args(answer) or (answer,)) if _is_model(hint)]
        if len(inputs) != 1 or len(outputs) != 1:
            raise ConfigurationError(
                f"workflow {name!r}: annotate one pydantic model as its input and one as its output"
            )
        description = (inspect.getdoc(function) or "").split("\n")[0]
        return Workflow(name, version, description, inputs[0], outputs[0], function)

    return define


def _is_model(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseModel)
