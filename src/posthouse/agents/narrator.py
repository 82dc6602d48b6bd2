"""What the readers of a run are told while a model is asked: its text, its retries, which model it is."""

from dataclasses import dataclass

from posthouse.agents.assignment import Assignment
from posthouse.agents.deltas import DeltaBatcher
from posthouse.events.types import (
    Draft,
    MessageDelta,
    MessageSuperseded,
    ModelRetrying,
    ModelRouted,
)
from posthouse.llm.messages import Completion
from posthouse.llm.provider import Listener
from posthouse.llm.retry import Retry
from posthouse.llm.routed import Hooks, Prepare
from posthouse.llm.router import Choice


@dataclass(frozen=True)
class Answer:
    """A completion, the model that was chosen last for it, and what the step's commit is still to tell."""

    completion: Completion
    choice: Choice | None = None
    events: tuple[Draft, ...] = ()


class Narrator:
    """Tells of one request. The first choice waits for the step's commit, unless something happens before."""

    def __init__(self, job: Assignment, key: str) -> None:
        self._job = job
        self._key = key
        self._pending: Draft | None = None
        self._deltas = DeltaBatcher(self._push, job.now)
        self._heard = Listener(self._deltas.add)
        self.choice: Choice | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return self._deltas.text

    @property
    def beside(self) -> int:
        """How many characters came so far that are no text, as of calls."""
        return self._heard.beside

    def hooks(self, prepare: Prepare | None = None) -> Hooks:
        """What the request calls."""
        return Hooks(self._heard, self._retried, self._routed, prepare)

    def flush(self) -> None:
        """Sends what text there is."""
        self._deltas.flush()

    def told(self) -> None:
        """Announces the choice now: no commit of an answer will."""
        if self._pending is not None:
            self._job.steps.announce(self._pending)
        self._pending = None

    def answer(self, completion: Completion) -> Answer:
        """The completion, with what its commit is to tell."""
        events = (self._pending,) if self._pending is not None else ()
        return Answer(completion, self.choice, events)

    def _push(self, delta: MessageDelta) -> None:
        self._job.steps.push(delta, agent=self._job.name, step=self._key)

    def _routed(self, choice: Choice) -> None:
        former, self.choice = self.choice, choice
        if former == choice:
            return
        event = ModelRouted(
            provider=choice.provider, model=choice.model, tier=choice.tier, reason=choice.reason
        )
        draft = self._job.draft(event, self._key)
        if former is None:
            self._pending = draft
            return
        self.told()
        self._restart()
        self._job.steps.announce(draft)

    def _retried(self, retry: Retry) -> None:
        self.told()
        event = ModelRetrying(code=retry.code, attempt=retry.attempt, delay_ms=retry.delay_ms)
        self._job.steps.announce(self._job.draft(event, self._key))
        self._restart()

    def _restart(self) -> None:
        self._heard.restart()
        if self._deltas.restart():
            self._job.steps.announce(self._job.draft(MessageSuperseded(), self._key))
