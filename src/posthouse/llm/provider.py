"""The seam to a model: one method."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from posthouse.llm.messages import Completion, ModelRequest

# Gets the model that was asked and the headers of what came, whatever its status.
Heard: TypeAlias = Callable[[str, Mapping[str, str]], None]


class Listener:
    """An `on_text` that is also told how much came that is no text: the names and arguments of calls, a refusal.

    Who fails in the middle of an answer is paid for that too.
    """

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self.beside = 0

    def __call__(self, piece: str) -> None:
        """Takes a piece of text."""
        self._on_text(piece)

    def hear(self, characters: int) -> None:
        """So many characters came that are no text."""
        self.beside += characters

    def restart(self) -> None:
        """Forgets what came, as the answer comes anew."""
        self.beside = 0


class ModelProvider(Protocol):
    """Something that answers model requests."""

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> Completion:
        """The whole answer; `on_text` gets each piece of text as it arrives, and a Listener what else comes.

        Raises ModelUnavailable (transient), ContentRefused, or Fatal (a bad key, an unknown model).
        """
        ...
