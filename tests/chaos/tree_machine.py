"""Any order of what may happen to trees of runs, repeats and crashes included."""

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from posthouse.inputs.model import OnTimeout
from posthouse.runs.model import Status
from posthouse.storage import keys
from tests.chaos.tree_world import CHILDREN, ENDINGS, World, one_of

TIMES, PICK = st.integers(1, 2), st.integers(0, 63)
STEP, KEY, QUESTION = st.sampled_from("ab"), st.sampled_from(CHILDREN), st.sampled_from("qr")
HOW, END = st.sampled_from(OnTimeout), st.sampled_from(sorted(ENDINGS))
ASIDE = st.sets(st.sampled_from("abqrx"))

waiting = precondition(lambda self: any(node.queued for node in self.all))
claimed = precondition(lambda self: self.claims)
planted = precondition(lambda self: self.forest)


class TreesMachine(RuleBasedStateMachine, World):
    """What may happen, and when."""

    url = ""

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        World.__init__(self, self.url)

    def teardown(self) -> None:
        """Lets go of Redis."""
        self.close()

    @initialize(times=TIMES, limit=st.sampled_from([0, 400]), timed=st.booleans())
    def begin(self, times: int, limit: int, timed: bool) -> None:
        """There is always one tree to begin with."""
        self.accept(times, limit, timed)

    accept = precondition(lambda self: len(self.forest) < 2)(
        rule(times=TIMES, limit=st.sampled_from([0, 100, 400]), timed=st.booleans())(World.accept)
    )
    claim = waiting(rule(repeated=st.booleans())(World.claim))
    commit = claimed(rule(pick=PICK, step=STEP, times=TIMES, used=st.integers(0, 10))(World.commit))
    reserve = claimed(rule(pick=PICK, step=STEP, times=TIMES)(World.reserve))
    spawn = claimed(rule(pick=PICK, key=KEY, times=TIMES)(World.spawn))
    ask = claimed(rule(pick=PICK, key=QUESTION, times=TIMES, how=HOW)(World.ask))
    answer = precondition(lambda self: any(node.asked or node.former for node in self.all))(
        rule(pick=PICK, value=st.integers(1, 2), times=TIMES)(World.answer)
    )
    park = claimed(rule(pick=PICK, nap=st.booleans())(World.park))
    finish = claimed(rule(pick=PICK, how=END, times=TIMES)(World.finish))
    cancel = planted(rule(pick=PICK)(World.cancel))
    delete = planted(rule(pick=PICK)(World.delete))
    retry = precondition(lambda self: self.tried)(
        rule(pick=PICK, aside=ASIDE, times=TIMES, end=st.booleans())(World.retry)
    )
    time_of_a_wait_is_over = precondition(lambda self: any(node.timed for node in self.all))(
        rule(pick=PICK)(World.time_of_a_wait_is_over)
    )
    time_of_a_root_is_over = precondition(lambda self: any(not one.over for one in self.forest))(
        rule(pick=PICK)(World.time_of_a_root_is_over)
    )
    people_take_their_time = precondition(lambda self: any(one.asking for one in self.forest))(
        rule(pick=PICK)(World.people_take_their_time)
    )
    everything_agrees = invariant()(World.everything_agrees)

    @precondition(lambda self: any(one.members and not one.over for one in self.forest))
    @rule(pick=PICK, aside=ASIDE, end=st.booleans())
    def end_and_retry(self, pick: int, aside: set[str], end: bool) -> None:
        """A tree at work is tried again."""
        root = one_of([one for one in self.forest if one.members and not one.over], pick)
        self.do(self.transitions.cancel(root.run_id, "default"))
        root.end(Status.CANCELLED)
        self.everything_agrees()
        self.retry(self.tried.index(root), aside, times=1, end=end)

    @waiting
    @rule(key=KEY, more=st.booleans(), nap=st.booleans())
    def carry_and_spawn(self, key: str, more: bool, nap: bool) -> None:
        self.carry(CHILDREN if more else key, "", nap=nap)

    @waiting
    @rule(key=QUESTION, how=HOW, nap=st.booleans())
    def carry_and_ask(self, key: str, how: OnTimeout, nap: bool) -> None:
        self.carry("", key, how, nap=nap)

    @waiting
    @rule(how=END)
    def carry_and_end(self, how: str) -> None:
        self.carry("", "", end=how)

    @claimed
    @rule(pick=PICK, what=st.sampled_from(["release", "crash", "beat", "lapse"]), times=TIMES)
    def mishap(self, pick: int, what: str, times: int) -> None:
        claim = self.claimed(pick)
        match what:
            case "release":
                self.release(claim)
            case "crash":
                self.crash(claim, times)
            case "beat":
                self.beat(claim)
            case _:
                self.lapse(claim)

    @planted
    @rule(what=st.sampled_from(["loss", "doctor", "sweep"]))
    def look_after(self, what: str) -> None:
        if what == "doctor":
            assert self.do(self.doctor.examine()) == []
        if what == "loss":
            for job in self.do(self.redis.zrange(keys.QUEUE, 0, 0)):
                self.do(self.redis.zrem(keys.QUEUE, job))
        self.sweep()


def any_order(address: str, examples: int, steps: int, number: int | None = None) -> int:
    """So many trees, each with so many steps; gives how many orders were gone through to the end.

    Raises AssertionError with the shortest way to a breach.
    """
    orders = 0

    class Machine(TreesMachine):
        url = address

        def teardown(self) -> None:
            nonlocal orders
            orders += 1
            super().teardown()

    run_state_machine_as_test(
        Machine if number is None else seed(number)(Machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
    return orders
