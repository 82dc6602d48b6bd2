"""Plans through real worker loops: agreed on, carried out side by side, answered honestly, never done twice."""

import asyncio
import hashlib
import json
import random
import re
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from redis.asyncio import Redis

from posthouse.agents.loop import AgentLoop
from posthouse.errors import BudgetExceeded, RunCode, StepFailed, ToolFailed
from posthouse.inputs.model import Answer, Decision
from posthouse.inputs.store import InputRequest, Inputs
from posthouse.journal.model import AgentAnswer, SourceRead
from posthouse.llm.messages import ModelRequest
from posthouse.llm.outside import blocks_in
from posthouse.llm.retry import RetryingProvider
from posthouse.llm.routed import one_model
from posthouse.runs.model import RunRecord, Status
from posthouse.storage import keys
from posthouse.telemetry import Metrics
from posthouse.testing.crew import Crew, agents_called
from posthouse.testing.fleet import LocalFleet
from posthouse.testing.provider import ScriptedProvider, say
from posthouse.tools.model import Page, Resources, SearchHit
from posthouse.workflows import dag
from posthouse.workflows.catalogue import library
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import Workflow
from posthouse.workflows.plan import Plan, Subtask

AGENTS = agents_called("planner", "researcher", "analyst", "writer")
TOPIC = re.compile(r"^Topic: Do (\S+)\.$", re.MULTILINE)
LABEL = re.compile(r"^Result of `(\S+)`")
READ = SourceRead("doc://leases", "Leases", "researcher/turn:1/tool:x")


class Troupe:
    """Agents that play a plan: each subtask says its name and what it was given; some fail, some are held."""

    def __init__(self, *plans: Any) -> None:
        self.plans = [text_of(plan) for plan in plans]
        self.failing: dict[str, Exception] = {}
        self.stopped: dict[str, RunCode] = {}
        self.held: set[str] = set()
        self.gate = asyncio.Event()
        self.reached = asyncio.Event()
        self.crew = Crew(self.said)

    async def said(self, agent: str, task: str) -> str | AgentAnswer:
        if agent == "planner":
            text = self.plans.pop(0)
            return AgentAnswer(text, (), 1, self.stopped.get("planner"))
        found = TOPIC.search(task)
        name = found[1] if found else agent
        if name in self.held:
            self.reached.set()
            await self.gate.wait()
        if name in self.failing:
            raise self.failing[name]
        given = [said for _, said in blocks_in(task)]
        sources = (READ,) if agent == "researcher" else ()
        return AgentAnswer(f"{name}<{'|'.join(given)}>", sources, 1, self.stopped.get(name))

    def tasks(self, agent: str) -> list[str]:
        return [task for name, task in self.crew.made if name == agent]

    def done(self) -> list[str]:
        """The subtasks that were really worked on, in order."""
        found = [TOPIC.search(task) for _, task in self.crew.made]
        return [one[1] for one in found if one]


def text_of(plan: Any) -> str:
    return plan if isinstance(plan, str) else json.dumps({"subtasks": plan})


def node(name: str, *depends_on: str, agent: str = "researcher") -> dict[str, Any]:
    return {"id": name, "agent": agent, "task": f"Do {name}.", "depends_on": list(depends_on)}


CHAIN = [node("1"), node("2", "1", agent="analyst"), node("3", "2", agent="analyst")]


@asynccontextmanager
async def stage(url: str, troupe: Troupe, *, workers: int = 1) -> AsyncIterator[LocalFleet]:
    flows = library().values()
    async with LocalFleet(url, flows, agents=AGENTS, runner=troupe.crew) as fleet:
        for _ in range(workers):
            fleet.worker()
        yield fleet


async def played(fleet: LocalFleet, **given: Any) -> RunRecord:
    run_id = await fleet.submit("orchestrator", json.dumps({"goal": "the goal"} | given))
    return await fleet.ended(run_id)


def code_of(record: RunRecord) -> tuple[Status, str]:
    assert record.error is not None
    return record.status, record.error.code


async def test_a_chain_of_three_sees_what_came_before(redis: Redis, valkey_url: str) -> None:
    troupe = Troupe(CHAIN)
    async with stage(valkey_url, troupe, workers=2) as fleet:
        record = await played(fleet)
        events = await fleet.events(record.run_id)
        children = {one.decode() for one in await redis.smembers(keys.tree(record.run_id))}
        flows = {(await fleet.record(child)).workflow for child in children}
    assert record.status is Status.COMPLETED
    assert troupe.done() == ["1", "2", "3"]
    answer = record.output["answer"]
    assert answer.startswith("writer<1<>")
    third = next(task for _, task in troupe.crew.made if "Do 3." in task)
    assert [said[:4] for _, said in blocks_in(third)] == ["2<1<"]
    assert "<doc://leases>" in answer
    assert record.output["sources"] == [vars(READ)]
    assert [(one["id"], one["state"], one["reason"]) for one in record.output["subtasks"]] == [
        (name, "completed", None) for name in "123"
    ]
    assert {one["run_id"] for one in record.output["subtasks"]} == children
    assert flows == {"agent"}
    assert [kind for kind in events if kind.startswith(("plan.", "subtask."))] == [
        "plan.created", *["subtask.started", "subtask.completed"] * 3,
    ]  # fmt: skip
    [asked] = troupe.tasks("planner")
    assert "- researcher: Is the researcher." in asked
    assert "- planner" not in asked


async def test_what_fails_fails_alone_and_the_answer_says_so(valkey_url: str) -> None:
    plan = [node("a"), node("b"), node("c", "a"), node("d", "b")]
    for policy, left in (("skip", ["a", "b", "d"]), ("continue", ["a", "b", "c", "d"])):
        troupe = Troupe(plan)
        troupe.failing["a"] = StepFailed("the page was gone")
        async with stage(valkey_url, troupe) as fleet:
            record = await played(fleet, on_failure=policy)
            events = await fleet.events(record.run_id)
        assert code_of(record) == ("incomplete", "tool_failed")
        assert sorted(troupe.done()) == left
        assert events.count("subtask.skipped") == (1 if policy == "skip" else 0)
        answer = record.output["answer"]
        assert answer.startswith("writer<")
        assert "## Not in this answer" in answer
        assert "`a` (researcher: Do a.) failed: the page was gone" in answer
        states = {one["id"]: one["state"] for one in record.output["subtasks"]}
        assert states["c"] == ("skipped" if policy == "skip" else "completed")
        assert "a (failed)" in record.error.message  # type: ignore[union-attr]
        [asked] = troupe.tasks("writer")
        assert "What is missing:" in asked


async def test_the_code_says_what_kept_the_subtasks(valkey_url: str) -> None:
    for stopped, code in (
        ({"a": RunCode.MAX_ITERATIONS}, "max_iterations"),
        ({"a": RunCode.LOOP_DETECTED, "b": RunCode.BUDGET_EXCEEDED}, "budget_exceeded"),
    ):
        troupe = Troupe([node("a"), node("b"), node("c", "a")])
        troupe.stopped |= stopped
        async with stage(valkey_url, troupe) as fleet:
            record = await played(fleet)
        assert code_of(record) == ("incomplete", code)
        assert sorted(troupe.done()) == ["a", "b", "c"]
        assert "`a` (researcher: Do a.) was stopped" in record.output["answer"]


async def test_without_any_result_the_run_fails(valkey_url: str) -> None:
    troupe = Troupe([node("a"), node("b", "a")])
    troupe.failing["a"] = StepFailed("no")
    async with stage(valkey_url, troupe) as fleet:
        record = await played(fleet)
    assert code_of(record) == ("failed", "tool_failed")
    assert record.error is not None
    assert "a (failed), b (skipped)" in record.error.message
    assert troupe.tasks("writer") == []


async def test_what_there_is_without_a_writer(valkey_url: str) -> None:
    for failing, stopped, code in (
        ({"writer": StepFailed("no")}, {}, "tool_failed"),
        ({}, {"writer": RunCode.BUDGET_EXCEEDED}, "budget_exceeded"),
    ):
        troupe = Troupe(CHAIN)
        troupe.failing |= failing
        troupe.stopped |= stopped
        async with stage(valkey_url, troupe) as fleet:
            record = await played(fleet)
        assert code_of(record) == ("incomplete", code)
        assert "No final answer was written" in record.output["answer"]
        assert "3<2<1<" in record.output["answer"]


async def test_a_limit_before_there_is_a_plan_is_no_fault_of_the_plan(valkey_url: str) -> None:
    for code in (RunCode.BUDGET_EXCEEDED, RunCode.TIMEOUT):
        troupe = Troupe("half a pl")
        troupe.stopped["planner"] = code
        async with stage(valkey_url, troupe) as fleet:
            record = await played(fleet)
        assert code_of(record) == ("incomplete", code)
        assert record.output["answer"].startswith("No plan was made for this goal: the goal")


async def test_a_budget_that_is_to_fail_the_run_fails_it(valkey_url: str) -> None:
    for who in ("b", "writer"):
        troupe = Troupe([node("a"), node("b")])
        troupe.failing[who] = BudgetExceeded("All is spent.")
        async with stage(valkey_url, troupe) as fleet:
            record = await played(fleet)
        assert code_of(record) == ("failed", "budget_exceeded")
        assert len(troupe.tasks("writer")) == (who == "writer")


def circle(count: int) -> list[dict[str, Any]]:
    return [node(f"n{one}", f"n{(one + 1) % count}") for one in range(count)]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (circle(3), "circle: n0 -> n2 -> n1 -> n0"),
        ([node("a", "b")], "no subtask of the plan: b"),
        ([node("a", agent="planner")], "the agent 'planner' of subtask 'a' is unknown"),
        ([node("a"), node("a")], "used more than once: a"),
        ([node("a", "a")], "depends on itself"),
        ([node(f"n{one}") for one in range(10_000)], "it is too long"),
        ([{"id": "x"}] * 10_000, "has 10000 subtasks, at most 50"),
        ([], "the plan is empty"),
        ("no plan at all", "Invalid JSON"),
    ],
    ids=["circle", "dependency", "agent", "twice", "itself", "large", "many", "empty", "words"],
)
async def test_a_plan_that_does_not_hold_starts_nothing(
    redis: Redis, valkey_url: str, plan: Any, said: str
) -> None:
    troupe = Troupe(plan)
    troupe.stopped["planner"] = RunCode.INVALID_OUTPUT
    async with stage(valkey_url, troupe) as fleet:
        record = await played(fleet)
        assert "plan.created" not in await fleet.events(record.run_id)
    assert code_of(record) == ("failed", "invalid_plan")
    assert record.error is not None
    assert said in record.error.message
    assert len(record.error.message) < 2000
    assert await redis.smembers(keys.tree(record.run_id)) == set()


class Nothing:
    async def search(self, query: str, limit: int) -> tuple[SearchHit, ...]:
        raise ToolFailed("nothing here", kind="unexpected")

    async def read(self, address: str) -> Page:
        raise ToolFailed("nothing here", kind="unexpected")


async def test_a_planner_is_told_what_to_mend_and_not_for_ever(valkey_url: str) -> None:
    told: list[str] = []

    def mended(request: ModelRequest, on_text: Callable[[str], None]) -> Any:
        told.append(str(request.messages[-1]))
        return say(text_of([node("a")]))

    for lines, status in (
        ([say(text_of(circle(2))), mended, say("found"), say("answered")], Status.COMPLETED),
        ([say(text_of(circle(2)))] * 9, Status.FAILED),
    ):
        provider = ScriptedProvider(lines)
        metrics = Metrics(CollectorRegistry())
        models = one_model(RetryingProvider(provider), "m")
        loop = AgentLoop(models, {}, Resources(search=Nothing(), pages=Nothing()), metrics)
        flows = library().values()
        async with LocalFleet(valkey_url, flows, agents=AGENTS, runner=loop) as fleet:
            fleet.worker()
            record = await played(fleet)
        assert record.status is status
    assert "circle: n0 -> n1 -> n0" in told[0]
    assert code_of(record) == ("failed", "invalid_plan")
    assert len(provider.requests) == 3


async def answered(fleet: LocalFleet, redis: Redis, run_id: str, **words: Any) -> InputRequest:
    """Answers what the run asks; the question."""
    await fleet.until(run_id, Status.AWAITING_INPUT)
    [asked] = await Inputs(redis).open_in(run_id, "default")
    await Inputs(redis).answer(asked, "default", Answer.model_validate(words))
    return asked


async def test_a_person_edits_the_plan_until_it_holds(redis: Redis, valkey_url: str) -> None:
    troupe = Troupe([node("a"), node("b", "a")])
    async with stage(valkey_url, troupe) as fleet:
        given = {"goal": "the goal", "approve_plan": True}
        run_id = await fleet.submit("orchestrator", json.dumps(given))
        bad = {"subtasks": [node("a", "b"), node("b", "a")]}
        asked = await answered(fleet, redis, run_id, decision="edit", arguments=bad)
        assert (asked.request.kind, asked.request.agent) == ("plan", "planner")
        assert asked.request.decisions == (Decision.APPROVE, Decision.EDIT, Decision.REJECT)
        shown = {"subtasks": [node("a"), node("b", "a")]}
        assert asked.request.arguments == shown
        assert "the goal" in asked.request.question
        assert asked.request.form is not None
        agents = asked.request.form["$defs"]["Subtask"]["properties"]["agent"]["enum"]
        assert agents == ["researcher", "analyst", "writer"]
        good = {"subtasks": [node("c", agent="analyst")]}
        asked = await answered(fleet, redis, run_id, decision="edit", arguments=good)
        assert "does not hold: these subtasks wait for each other" in asked.request.question
        assert asked.request.arguments == shown
        record = await fleet.ended(run_id)
        events = await fleet.events(run_id)
    assert record.status is Status.COMPLETED
    assert troupe.done() == ["c"]
    assert (events.count("plan.created"), events.count("input.answered")) == (2, 2)


async def test_a_plan_that_is_sent_back_is_made_anew(redis: Redis, valkey_url: str) -> None:
    given = json.dumps({"goal": "the goal", "approve_plan": True})
    troupe = Troupe([node("a")], [node("b")])
    async with stage(valkey_url, troupe) as fleet:
        run_id = await fleet.submit("orchestrator", given)
        await answered(fleet, redis, run_id, decision="reject", comment="Ask b instead.")
        await answered(fleet, redis, run_id, decision="approve")
        record = await fleet.ended(run_id)
    assert (record.status, troupe.done()) == (Status.COMPLETED, ["b"])
    assert "Ask b instead." in troupe.tasks("planner")[1]

    for comments in (["no", "no", "no"], [""]):
        troupe = Troupe(*[[node(one)] for one in "abc"])
        async with stage(valkey_url, troupe) as fleet:
            run_id = await fleet.submit("orchestrator", given)
            for comment in comments:
                await answered(fleet, redis, run_id, decision="reject", comment=comment)
            record = await fleet.ended(run_id)
        assert code_of(record) == ("failed", "invalid_plan")
        assert record.error is not None
        assert record.error.message == "The plan was rejected."
        assert (len(troupe.tasks("planner")), troupe.done()) == (len(comments), [])


class Answers(BaseModel):
    answers: dict[str, str]


def hashed(name: str, given: list[str]) -> str:
    return hashlib.sha256("|".join([name, *sorted(given)]).encode()).hexdigest()


class Hashing(Troupe):
    """Each subtask says the hash of its name and of what it was given; the n-th one says when it begins."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    async def said(self, agent: str, task: str) -> str | AgentAnswer:
        found = TOPIC.search(task)
        assert found is not None
        self.left -= 1
        if self.left == 0:
            self.reached.set()
        if self.left <= 0:
            await self.gate.wait()
        await asyncio.sleep(0)
        return hashed(found[1], [text for _, text in blocks_in(task)])


def answers_to(plan: Plan) -> dict[str, str]:
    """What the subtasks must say, worked out without the service."""
    found: dict[str, str] = {}
    while len(found) < len(plan.subtasks):
        for one in plan.subtasks:
            if one.id not in found and all(before in found for before in one.depends_on):
                found[one.id] = hashed(one.id, [found[before] for before in one.depends_on])
    return found


async def walk(ctx: RunContext, plan: Plan) -> Answers:
    ends = await dag.run(ctx, plan, dag.to_agents("the goal"))
    return Answers(answers={one: end.result.text for one, end in ends.items()})


WALK = Workflow("walk", 1, "", Plan, Answers, walk)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Of up to 50 subtasks: loose, layered, dense, a chain, or a star."""
    count = draw(st.integers(2, 50))
    shape = draw(st.sampled_from([0.02, 0.1, 0.5, "chain", "star"]))
    chance = random.Random(draw(st.integers(0, 2**32)))

    def before(number: int) -> tuple[str, ...]:
        match shape:
            case "chain":
                chosen = range(max(0, number - 1), number)
            case "star":
                chosen = range(min(number, 1)) if number < count - 1 else range(number)
            case float(share):
                return tuple(f"n{one}" for one in range(number) if chance.random() < share)
        return tuple(f"n{one}" for one in chosen)

    numbers = chance.sample(range(count), count)
    return Plan(
        subtasks=tuple(
            Subtask(id=f"n{one}", agent="researcher", task=f"Do n{one}.", depends_on=before(one))
            for one in numbers
        )
    )


async def story(redis: Redis, run_id: str) -> list[tuple[str, str, int]]:
    """Type, subtask and time (ms) of each event of a subtask in the root's log."""
    return [
        (fields[b"type"].decode(), orjson.loads(fields[b"data"])["subtask"], int(fields[b"time"]))
        for _, fields in await redis.xrange(keys.events(run_id))
        if fields[b"type"].startswith(b"subtask.")
    ]


def gaps_in(plan: Plan, told: list[tuple[str, str, int]]) -> list[int]:
    """From the end of what a subtask waited for last to its start, in ms; asserts that the order was kept."""
    ended: dict[str, int] = {}
    gaps = []
    for kind, name, moment in told:
        if kind == "subtask.completed":
            assert name not in ended
            ended[name] = moment
        elif kind == "subtask.started":
            before = plan.by_id[name].depends_on
            assert set(before) <= set(ended)
            gaps += [moment - max(ended[one] for one in before)] if before else []
    assert set(ended) == set(plan.by_id)
    return gaps


@dataclass(frozen=True)
class Walk:
    """What two workers made of a plan."""

    finished: set[str]  # when the first worker was dead
    done_since: list[str]
    gaps: list[int]


async def walked(url: str, plan: Plan, at: int) -> Walk:
    """Carries the plan out on two workers, of which one dies when the subtask number `at` has begun."""
    troupe = Hashing(at)
    async with (
        Redis.from_url(url) as redis,
        LocalFleet(
            url,
            [WALK, library()["agent"]],
            agents=AGENTS,
            runner=troupe.crew,
            lease_seconds=0.6,
        ) as fleet,
    ):
        await redis.flushall()
        first = fleet.worker()
        run_id = await fleet.submit("walk", plan.model_dump_json())
        async with asyncio.timeout(20):
            await troupe.reached.wait()
        fleet.worker()
        await fleet.dead(first)
        told = await story(redis, run_id)
        finished = {name for kind, name, _ in told if kind == "subtask.completed"}
        begun = troupe.done()
        troupe.gate.set()
        record = await fleet.ended(run_id, seconds=30)
        assert record.status is Status.COMPLETED
        assert record.output == {"answers": answers_to(plan)}
        await fleet.events(run_id)
        gaps = gaps_in(plan, await story(redis, run_id))
        return Walk(finished, troupe.done()[len(begun) :], gaps)


def test_any_plan_is_carried_out_in_order_and_no_finished_subtask_twice(valkey_url: str) -> None:
    gaps: list[int] = []

    @settings(max_examples=4, deadline=None, derandomize=True, database=None)
    @given(plan=plans(), data=st.data())
    def play(plan: Plan, data: st.DataObject) -> None:
        at = data.draw(st.integers(1, len(plan.subtasks)))
        walk = asyncio.run(walked(valkey_url, plan, at))
        assert walk.finished.isdisjoint(walk.done_since)
        assert len(walk.done_since) == len(set(walk.done_since))
        gaps.extend(walk.gaps)

    play()
    assert min(gaps) >= 0
    print(
        f"\nfrom the last dependency's end to a subtask's start: median {statistics.median(gaps)} ms,"
        f" most {max(gaps)} ms, {len(gaps)} subtasks"
    )
