"""Taking in a run: its input is validated here, and it is in Redis when the answer is given."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog
from pydantic import BaseModel, ValidationError

from posthouse.budget.model import Budget
from posthouse.clock import monotonic
from posthouse.control.wording import in_words
from posthouse.errors import InvalidRequest, StorageUnavailable
from posthouse.events.types import Draft, RunCreated
from posthouse.ids import new_run_id
from posthouse.llm.router import checked_models
from posthouse.logs import bind_run
from posthouse.runs.transitions import Acceptance, Accepted, Transitions
from posthouse.workflows.definition import Workflow

REPEAT_WITHIN_SECONDS = 0.25
LONGEST_LOCATION = 200

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Submission:
    """What a caller asks for. `input` is plain JSON, `route` and `key` say when two are the same.

    Priority 1 to 9, 9 begins first; `models` are those of the run by tier, as `provider:model`. `location` is where
    the input stands in the caller's request, for error messages.
    """

    route: str
    tenant: str
    workflow: str
    input: Any
    metadata: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    location: tuple[str, ...] = ()
    priority: int = 5
    not_before_ms: int = 0
    timeout_ms: int = 0
    budget: Budget | None = None
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The same for the same request, whatever the order of its fields; `` without a key."""
        if not self.key:
            return ""
        when = (self.priority, self.not_before_ms, self.timeout_ms)
        usual = when == (5, 0, 0)
        body = (
            self.route,
            self.workflow,
            self.input,
            dict(self.metadata),
            *(() if usual else when),
            *self._chosen,
        )
        return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def _chosen(self) -> tuple[tuple[str, Any], ...]:
        """Budget and models, if there are any: without them a fingerprint is what it was before there were."""
        budget = self.budget.model_dump(mode="json") if self.budget else None
        models = {tier: list(names) for tier, names in self.models.items()}
        return tuple(
            (name, value) for name, value in (("budget", budget), ("models", models)) if value
        )


class Submissions:
    """Accepts runs of the given workflows; a run is kept `ttl_seconds` after its end.

    `endpoints` are the names of those that its own models may be at; None when they are not known here.
    """

    def __init__(
        self,
        transitions: Transitions,
        workflows: Mapping[str, Workflow[Any, Any]],
        *,
        ttl_seconds: int,
        endpoints: Collection[str] | None = None,
    ) -> None:
        self._transitions = transitions
        self._workflows = workflows
        self._ttl_ms = ttl_seconds * 1000
        self._endpoints = endpoints

    async def submit(self, submission: Submission) -> Accepted:
        """The accepted run, or the one that the same key made before.

        Raises InvalidRequest, IdempotencyMismatch, QueueFull, StorageUnavailable.
        """
        definition, value = self.checked(submission)
        models = self.models_of(submission)
        created = RunCreated(workflow=definition.name, version=definition.version)
        accepted = await self._accept(
            Acceptance(
                run_id=new_run_id(),
                tenant=submission.tenant,
                workflow=definition.name,
                version=definition.version,
                input=value.model_dump_json(),
                metadata=orjson.dumps(dict(submission.metadata)).decode(),
                created=Draft(event=created),
                ttl_ms=self._ttl_ms,
                idempotency_key=submission.key,
                fingerprint=submission.fingerprint,
                band=10 - submission.priority,
                not_before_ms=submission.not_before_ms,
                timeout_ms=submission.timeout_ms,
                models=orjson.dumps(models).decode() if models else "",
                budget=tuple(submission.budget.rows()) if submission.budget else (),
            )
        )
        with bind_run(accepted.run_id):
            _log.info("run_accepted", workflow=definition.name, replayed=accepted.replayed)
        return accepted

    def checked(self, submission: Submission) -> tuple[Workflow[Any, Any], BaseModel]:
        """The definition that is asked for, and its input as the definition reads it. Raises InvalidRequest."""
        definition = self._definition(submission.workflow)
        return definition, _validated(definition.input_model, submission)

    def models_of(self, submission: Submission) -> dict[str, tuple[str, ...]]:
        """The run's own models by tier. Raises InvalidRequest."""
        return checked_models(submission.models, self._endpoints)

    @property
    def ttl_ms(self) -> int:
        """How long a run is kept after its end."""
        return self._ttl_ms

    def _definition(self, name: str) -> Workflow[Any, Any]:
        definition = self._workflows.get(name)
        if definition is None:
            known = ", ".join(sorted(self._workflows)) or "none"
            message = f"there is no workflow {name[:64]!r}; there are: {known}"
            raise InvalidRequest(message, errors=({"location": "workflow", "message": message},))
        return definition

    async def _accept(self, run: Acceptance) -> Accepted:
        """Repeated once after a quick failure: with the same id it cannot become two runs."""
        began = monotonic()
        try:
            return await self._transitions.accept(run)
        except StorageUnavailable:
            if monotonic() - began > REPEAT_WITHIN_SECONDS:
                raise
            return await self._transitions.accept(run)


def _validated(model: type[BaseModel], submission: Submission) -> BaseModel:
    def location(parts: tuple[int | str, ...]) -> str:
        return ".".join((*submission.location, *map(str, parts)))[:LONGEST_LOCATION] or "input"

    try:
        return model.model_validate_json(orjson.dumps(submission.input))
    except ValidationError as error:
        errors = tuple(
            {"location": location(found["loc"]), "message": in_words(found["type"], found["msg"])}
            for found in error.errors(include_url=False, include_context=False, include_input=False)
        )
        first = f"{errors[0]['location']}: {errors[0]['message']}"
        raise InvalidRequest(
            f"the input does not fit the workflow {submission.workflow!r}: {first}", errors=errors
        ) from None
