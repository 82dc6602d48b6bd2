"""What a tree took: the rows of every kind add up to the total, whatever the steps were."""

import orjson
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from posthouse.control.usage import Accounts, RunUsage, Spent, account_of
from posthouse.ids import new_run_id
from posthouse.journal.model import Outcome, Usage
from posthouse.journal.store import outcome_json
from posthouse.runs.model import RunRecord
from posthouse.storage import keys

AMOUNT = st.integers(0, 10**12)
USAGE = st.builds(Usage, **dict.fromkeys(vars(Usage()), AMOUNT))
NAMES = st.sampled_from(["at:m", "at:n", "openai:gpt"])


@st.composite
def steps(draw: st.DrawFn) -> Spent:
    by_model = draw(st.dictionaries(NAMES, USAGE, max_size=2))
    own = draw(st.builds(Usage, tool_calls=AMOUNT))
    usage = sum(by_model.values(), own)
    agent = draw(st.sampled_from([None, "researcher", "writer"]))
    return Spent(agent, usage, by_model, draw(st.booleans()))


@given(st.lists(st.lists(steps(), max_size=4), min_size=1, max_size=4))
def test_every_kind_of_rows_adds_up_to_the_total(runs: list[list[Spent]]) -> None:
    rows = [
        (RunUsage(f"r{number}", None, None, "flow", "running", Usage()), done)
        for number, done in enumerate(runs)
    ]
    account = account_of(rows)
    assert account.total == sum((step.usage for done in runs for step in done), Usage())
    assert sum(account.by_agent.values(), Usage()) == account.total
    assert sum(account.by_model.values(), Usage()) == account.total
    assert sum((run.usage for run in account.by_run), Usage()) == account.total
    aside = [step.usage for done in runs for step in done if step.set_aside]
    assert account.set_aside == sum(aside, Usage())


def test_an_outcome_says_what_it_took() -> None:
    took = Usage(model_calls=1, input_tokens=5, nano_usd=7)
    outcome = Outcome(
        seq=0, epoch=0, time=0, agent="scout", result={"text": "long"}, usage=took.spent(),
        by_model={"at:m": took.spent()},
    )  # fmt: skip
    text, _ = outcome_json(outcome)
    assert Spent.of(text) == Spent("scout", took, {"at:m": took})


def test_one_from_before_there_were_models_in_it_is_of_none() -> None:
    done = Spent.of(b'{"seq":1,"usage":{"model_calls":1,"dreams":4}}')
    account = account_of([(RunUsage("r", None, None, "flow", "running", Usage()), [done])])
    assert account.by_model == {None: Usage(model_calls=1)}


async def test_a_child_whose_id_sorts_before_its_parents_is_counted(redis: Redis) -> None:
    root, child, grandchild = (new_run_id() for _ in range(3))
    child, grandchild = max(child, grandchild), min(child, grandchild)  # clocks of two workers
    for one, parent in ((root, ""), (child, root), (grandchild, child)):
        record = {"tenant": "t", "workflow": "flow", "status": "completed", "root": root}
        await redis.hset(keys.run(one), mapping=record | {"parent": parent})
        outcome = {"seq": 1, "usage": {"model_calls": 1}}
        await redis.hset(keys.journal(one), "work", orjson.dumps(outcome))
    await redis.sadd(keys.tree(root), child, grandchild)
    top = RunRecord.model_construct(
        run_id=root, root=root, subtask=None, parent=None, workflow="flow", status="completed"
    )
    account = await Accounts(redis).of(top)
    assert [run.run_id for run in account.by_run] == [root, child, grandchild]
    assert account.total == Usage(model_calls=3)
