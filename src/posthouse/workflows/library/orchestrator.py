"""Orchestrator: plans how to reach a goal, lets agents do the subtasks side by side, writes one answer."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from posthouse.budget.model import words_for
from posthouse.errors import (
    BudgetExceeded,
    InvalidOutput,
    InvalidPlan,
    RunCode,
    RunFailed,
    recorded_failure,
)
from posthouse.inputs.model import Answer, Decision, Kind, Request
from posthouse.journal.model import MAX_FORM_CHARACTERS, AgentAnswer, SourceRead, digest_of
from posthouse.workflows import dag
from posthouse.workflows.citations import with_sources
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Incomplete, workflow
from posthouse.workflows.graph import CAPS
from posthouse.workflows.orchestration import (
    missing_of,
    planner_task,
    sources_of,
    synthesis_task,
    with_missing,
    without_writer,
)
from posthouse.workflows.plan import FailurePolicy, NodeState, Plan, plan_model, problem_of

_PLANNER, _WRITER = "planner", "writer"
_MOST_PLANS = 3
_SHOWN = 10


class OrchestratorRequest(BaseModel):
    """What to reach, whether a person sees the plan first, and what becomes of a subtask that lacks what it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    goal: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
    approve_plan: bool = Field(
        False, description="Shows the plan to a person first, who may edit it or send it back."
    )
    on_failure: FailurePolicy = Field(
        FailurePolicy.SKIP,
        description="What depends on a failed subtask is skipped, or goes on with the failure stated.",
    )


class SubtaskReport(BaseModel):
    """How a subtask ended; its run and the reason, where there is one."""

    model_config = ConfigDict(frozen=True)

    id: str
    agent: str
    state: NodeState
    run_id: str | None = None
    reason: str | None = None


class OrchestratorReport(BaseModel):
    """The answer in Markdown, every document that was read for it, and how each subtask ended."""

    model_config = ConfigDict(frozen=True)

    answer: str
    sources: tuple[SourceRead, ...]
    subtasks: tuple[SubtaskReport, ...]


@workflow("orchestrator", version=1)
async def orchestrator(
    ctx: RunContext, request: OrchestratorRequest
) -> OrchestratorReport | Incomplete[OrchestratorReport]:
    """Plans how to reach a goal, lets agents do the subtasks side by side, and writes one answer of their results."""

    async def known() -> dict[str, str]:
        return {name: words for name, words in ctx.agents.items() if name != _PLANNER}

    agents = await ctx.step("agents", known)
    try:
        plan = await _Planning(ctx, request, agents).agreed()
    except _Unplanned as why:
        text = f"No plan was made for this goal: {request.goal}\n\n{why}\n"
        report = OrchestratorReport(answer=text, sources=(), subtasks=())
        return Incomplete(report, why.code, str(why))
    ends = await dag.run(ctx, plan, dag.to_agents(request.goal), request.on_failure)
    _check(ends)
    return await _answer(ctx, request.goal, plan, ends)


class _Unplanned(Exception):
    """A limit stopped the planner, and it is no fault of its plan."""

    def __init__(self, message: str, code: RunCode) -> None:
        super().__init__(message)
        self.code = code


class _Planning:
    """From a goal to the plan that is carried out."""

    def __init__(
        self, ctx: RunContext, request: OrchestratorRequest, agents: Mapping[str, str]
    ) -> None:
        self._ctx = ctx
        self._request = request
        self._agents = agents
        self._model = plan_model(tuple(agents), CAPS)
        self._drawn = 0
        self._asked = 0

    async def agreed(self) -> Plan:
        """The plan that nobody has to look at, or that a person said yes to. Raises InvalidPlan."""
        feedback = ""
        for attempt in range(1, _MOST_PLANS + 1):
            plan = await self._shown(await self._planned(attempt, feedback))
            if not self._request.approve_plan:
                return plan
            decided = await self._decided(plan)
            if isinstance(decided, Plan):
                return decided
            feedback = decided.comment.strip()
            if not feedback:
                break
        raise InvalidPlan("The plan was rejected.")

    async def _planned(self, attempt: int, feedback: str) -> Plan:
        key = _PLANNER if attempt == 1 else f"{_PLANNER}:{attempt}"
        task = planner_task(self._request.goal, self._agents, CAPS, feedback)
        try:
            answer = await self._ctx.agent(_PLANNER, task, key=key, output=self._model)
        except InvalidOutput as error:
            raise InvalidPlan("The planner gave no plan, also after it was told so.") from error
        return self._read(answer)

    def _read(self, answer: AgentAnswer) -> Plan:
        # What is wrong with a longer one can take seconds to find.
        wrong = "it is too long"
        if len(answer.text) <= MAX_FORM_CHARACTERS:
            try:
                return self._model.model_validate_json(answer.text)
            except ValidationError as error:
                wrong = problem_of(error)
        match answer.stopped:
            case RunCode.BUDGET_EXCEEDED:
                raise _Unplanned(words_for(answer.limit), answer.stopped)
            case RunCode.TIMEOUT:
                raise _Unplanned("The planner's time was up before it had a plan.", answer.stopped)
            case _:
                raise InvalidPlan(f"The planner gave no plan that holds: {wrong}")

    async def _shown(self, plan: Plan) -> Plan:
        self._drawn += 1
        await dag.announce(self._ctx, plan, self._request.on_failure, number=self._drawn)
        return plan

    async def _decided(self, plan: Plan) -> Plan | Answer:
        """The plan as it is or as a person edited it; or the answer that sends it back."""
        wrong = ""
        while True:
            answer = await self._ask(plan, wrong)
            match answer.decision:
                case Decision.APPROVE:
                    return plan
                case Decision.EDIT:
                    try:
                        edited = self._model.model_validate(answer.arguments)
                    except ValidationError as error:
                        wrong = problem_of(error)
                        continue
                    return plan if edited == plan else await self._shown(edited)
                case _:
                    return answer

    async def _ask(self, plan: Plan, wrong: str) -> Answer:
        self._asked += 1
        shown = plan.model_dump(mode="json")
        question = f"Shall this plan be carried out? Its goal: {self._request.goal}"
        if wrong:
            question = f"The plan as it was edited does not hold: {wrong}\n\n{question}"
        request = Request(
            kind=Kind.PLAN,
            question=question,
            decisions=(Decision.APPROVE, Decision.EDIT, Decision.REJECT),
            form=self._model.model_json_schema(),
            arguments=shown,
            agent=_PLANNER,
            digest=digest_of(question, shown),
        )
        key = "approval" if self._asked == 1 else f"approval:{self._asked}"
        return await self._ctx.request(key, request)


def _check(ends: Mapping[str, dag.Ended]) -> None:
    """Raises what ends the run: a budget that nothing may come after, or that there is no result at all."""
    for end in ends.values():
        # A budget that leaves a part leaves the subtask incomplete.
        if end.result.state is NodeState.FAILED and end.code is RunCode.BUDGET_EXCEEDED:
            raise BudgetExceeded(end.result.reason)
    if not any(end.result.state.done for end in ends.values()):
        raise recorded_failure(_code_of(ends), f"No subtask brought a result: {_told(ends)}.")


async def _answer(
    ctx: RunContext, goal: str, plan: Plan, ends: Mapping[str, dag.Ended]
) -> OrchestratorReport | Incomplete[OrchestratorReport]:
    results = {one: end.result for one, end in ends.items()}
    missing = missing_of(plan, results)
    sources = sources_of(plan, results)

    def report(text: str) -> OrchestratorReport:
        answer = with_missing(with_sources(text, sources), missing)
        return OrchestratorReport(answer=answer, sources=sources, subtasks=_reports(ends))

    text, code, reason = await _written(ctx, synthesis_task(goal, plan, results, missing))
    if code is not None:
        return Incomplete(report(without_writer(goal, plan, results, reason)), code, reason)
    if missing:
        why = f"Not every subtask was completed: {_told(ends)}."
        return Incomplete(report(text), _code_of(ends), why)
    return report(text)


async def _written(ctx: RunContext, task: str) -> tuple[str, RunCode | None, str]:
    """The writer's text; or the code and the reason why there is none."""
    try:
        answer = await ctx.agent(_WRITER, task)
    except BudgetExceeded:
        raise  # whoever set the limit wants the run to fail at it
    except RunFailed as error:
        return "", error.code, f"The writer failed: {error}"
    if answer.stopped is RunCode.BUDGET_EXCEEDED:
        return "", answer.stopped, words_for(answer.limit)
    if answer.stopped is not None:
        return "", answer.stopped, "The writer was stopped before it had finished."
    return answer.text, None, ""


def _code_of(ends: Mapping[str, dag.Ended]) -> RunCode:
    """What kept the subtasks from their results: the budget when it was that for any, else what came first.

    A failure goes before a limit that left a part.
    """
    wrong = [end for end in ends.values() if end.result.state is not NodeState.COMPLETED]
    codes = [end.code for end in sorted(wrong, key=lambda end: end.result.state.done) if end.code]
    if RunCode.BUDGET_EXCEEDED in codes:
        return RunCode.BUDGET_EXCEEDED
    return codes[0] if codes else RunCode.TOOL_FAILED


def _told(ends: Mapping[str, dag.Ended]) -> str:
    """The subtasks that were not completed, each with its state."""
    wrong = [end.result for end in ends.values() if end.result.state is not NodeState.COMPLETED]
    shown = ", ".join(f"{result.id} ({result.state})" for result in wrong[:_SHOWN])
    more = len(wrong) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _reports(ends: Mapping[str, dag.Ended]) -> tuple[SubtaskReport, ...]:
    return tuple(
        SubtaskReport(
            id=end.result.id,
            agent=end.result.agent,
            state=end.result.state,
            run_id=end.run_id,
            reason=end.result.reason or None,
        )
        for end in ends.values()
    )
