import dataclasses
import json

import pytest
from pydantic import BaseModel

from posthouse.control.submission import Submission, Submissions
from posthouse.errors import InvalidRequest, StorageUnavailable
from posthouse.ids import is_ulid
from posthouse.runs.transitions import Acceptance, Accepted, Transitions
from posthouse.storage import keys
from posthouse.workflows.context import RunContext
from posthouse.workflows.definition import workflow


class Greeting(BaseModel):
    name: str
    times: int = 1


@workflow("greet", version=3)
async def greet(ctx: RunContext, request: Greeting) -> Greeting:
    """Says hello."""
    return request


DEFINITIONS = {"greet": greet}
WANTED = Submission("POST /runs", "default", "greet", {"name": "Ada"}, {"a": "b"}, "key")


class LostReplies(Transitions):
    """The first `lost` calls reach Redis, but their replies do not come back."""

    def __init__(self, redis, lost: int) -> None:
        super().__init__(redis)
        self.lost = lost
        self.seen: list[Acceptance] = []

    async def accept(self, run: Acceptance) -> Accepted:
        self.seen.append(run)
        accepted = await super().accept(run)
        if len(self.seen) <= self.lost:
            raise StorageUnavailable("the reply was lost")
        return accepted


async def test_the_validated_input_is_what_is_stored(redis):
    submissions = Submissions(Transitions(redis), DEFINITIONS, ttl_seconds=60)
    accepted = await submissions.submit(WANTED)
    stored = await redis.hgetall(keys.run(accepted.run_id))

    assert is_ulid(accepted.run_id)
    assert json.loads(stored[b"input"]) == {"name": "Ada", "times": 1}
    assert json.loads(stored[b"metadata"]) == {"a": "b"}
    assert (stored[b"workflow"], stored[b"version"]) == (b"greet", b"3")


async def test_a_lost_reply_makes_no_second_run(redis):
    transitions = LostReplies(redis, 1)
    submissions = Submissions(transitions, DEFINITIONS, ttl_seconds=60)
    await submissions.submit(dataclasses.replace(WANTED, key=""))

    assert len({run.run_id for run in transitions.seen}) == 1
    assert await redis.zcard(keys.index("default")) == 1


async def test_it_gives_up_after_the_second_lost_reply(redis):
    submissions = Submissions(LostReplies(redis, 2), DEFINITIONS, ttl_seconds=60)
    with pytest.raises(StorageUnavailable):
        await submissions.submit(WANTED)


async def test_what_does_not_fit_is_said_with_its_place(redis):
    submissions = Submissions(Transitions(redis), DEFINITIONS, ttl_seconds=60)
    wrong = dataclasses.replace(WANTED, input={"times": "x"}, location=("input",))
    with pytest.raises(InvalidRequest) as caught:
        await submissions.submit(wrong)

    assert [error["location"] for error in caught.value.errors] == ["input.name", "input.times"]
    assert await redis.dbsize() == 0


def test_the_fingerprint_says_when_two_requests_are_the_same():
    def fingerprint(**changes: object) -> str:
        return dataclasses.replace(WANTED, **changes).fingerprint

    assert fingerprint(input={"a": 1, "b": 2}) == fingerprint(input={"b": 2, "a": 1})
    assert fingerprint(tenant="other") == fingerprint()
    others = [{"route": "x"}, {"workflow": "x"}, {"input": {}}, {"metadata": {}}, {"key": ""}]
    assert len({fingerprint(), *(fingerprint(**other) for other in others)}) == 6
