"""The seam to a model: one method."""

from collections.abc import Callable
from typing import Protocol

from posthouse.llm.messages import Completion, ModelRequest


class ModelProvider(Protocol):
    """Something that answers model requests."""

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        """The whole answer; `on_text` gets each piece of text as it arrives.

        Raises ModelUnavailable (transient), ContentRefused, or Fatal (a bad key, an unknown model).
        """
        ...
