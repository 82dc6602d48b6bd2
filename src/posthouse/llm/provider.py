"""The seam to a model: one method."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from posthouse.llm.messages import Completion, ModelRequest

# Gets the model that was asked and the headers of what came, whatever its status.
Heard: TypeAlias = Callable[[str, Mapping[str, str]], None]


class ModelProvider(Protocol):
    """Something that answers model requests."""

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        """The whole answer; `on_text` gets each piece of text as it arrives.

        Raises ModelUnavailable (transient), ContentRefused, or Fatal (a bad key, an unknown model).
        """
        ...
