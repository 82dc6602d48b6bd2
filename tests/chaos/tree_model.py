"""What a model of trees of runs knows of each run, and what follows from what happens to it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from posthouse.inputs.model import input_id
from posthouse.runs.model import TERMINAL, Status


@dataclass
class Asked:
    """A question of a run: where it is, whether it may expire and whether its time is over, what was answered."""

    state: str = "open"
    expires: bool = False
    over: bool = False
    value: int | None = None


@dataclass
class Node:
    """What the model knows of one run of a tree."""

    run_id: str
    root: "Node | None" = None
    parent: "Node | None" = None
    key: str = ""
    status: Status = Status.PENDING
    fence: str | None = None
    crashes: int = 0
    retries: int = 0
    signals: int = 0
    started: bool = False
    parked: bool = False
    naps: bool = False
    nap_is_over: bool = False
    napped: bool = False
    poisoned: bool = False
    overdue: bool = False
    committed: set[str] = field(default_factory=set)
    spawned: dict[str, "Node"] = field(default_factory=dict)
    ended: dict[str, tuple[str, str, str | None]] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    former: dict[str, Asked] = field(default_factory=dict)
    before: set[str] = field(default_factory=set)
    reserved: dict[str, int] = field(default_factory=dict)
    output: str | None = None
    members: list["Node"] = field(default_factory=list)
    limit: int = 0
    spent: int = 0
    lost: int = 0
    base: int | None = None
    waited: int = 0

    @property
    def top(self) -> "Node":
        """The root of its tree."""
        return self.root or self

    @property
    def over(self) -> bool:
        """Whether it has an end for now."""
        return self.status in TERMINAL

    @property
    def queued(self) -> bool:
        """Whether a dispatch of it waits."""
        return not self.over and self.fence is None and not self.parked

    @property
    def tree(self) -> list["Node"]:
        """A root with all below it."""
        return [self.top, *self.top.members]

    @property
    def asking(self) -> list[str]:
        """The open questions of its tree."""
        return [
            input_id(node.run_id, key)
            for node in self.tree
            for key, asked in node.asked.items()
            if asked.state == "open"
        ]

    @property
    def spawning(self) -> list["Node"]:
        """Its children, those that a retry left aside as well."""
        return [node for node in self.top.members if node.parent is self]

    @property
    def depth(self) -> int:
        """0 for a root."""
        return self.parent.depth + 1 if self.parent else 0

    @property
    def joinable(self) -> list[tuple[str, "Node"]]:
        """Its children of whose end it does not know."""
        return [(key, child) for key, child in self.spawned.items() if key not in self.ended]

    @property
    def questions(self) -> list[str]:
        """Its own open questions."""
        return [key for key, one in self.asked.items() if one.state == "open"]

    @property
    def timed(self) -> list[str]:
        """What it waits for until some time."""
        return [*(key for key in self.questions if self.asked[key].expires), *["nap"] * self.naps]

    def park(self, status: Status, *, seen: int, napping: bool) -> bool:
        """It waits, unless something has moved since its owner looked: then true."""
        if self.signals != seen:
            return True
        if napping:
            self.naps, self.napped = True, False
            self.before.discard("nap")
        for _, child in self.joinable:
            if child.over:
                child.tell_parent()
        if self.signals != seen:
            return True
        self.disown()
        self.parked, self.status = True, status
        return False

    def spawn(self, key: str, run_id: str) -> "Node":
        """A new child; one that was under the same key is its child no more."""
        former = self.spawned.get(key)
        child = Node(run_id, root=self.top, parent=self, key=key)
        self.top.members.append(child)
        self.spawned[key] = child
        self.ended.pop(key, None)
        self.before.discard(key)
        self.crashes = 0
        if former is not None and not former.over:
            former.end(Status.CANCELLED, orphan=True)
        return child

    def ring(self) -> None:
        """What it waited for until a time that is over ends, when it is parked."""
        if not self.parked:
            return
        for asked in self.asked.values():
            if asked.state == "open" and asked.over:
                asked.state = "expired"
                self.wake()
        if self.naps and self.nap_is_over:
            self.naps, self.nap_is_over, self.napped = False, False, True
            self.wake()

    def to_revive(self, again: set[str]) -> Iterator["Node"]:
        """Those below it that a retry takes along, parents first: without a result, and still wanted."""
        for key, child in self.spawned.items():
            if key not in again and child.status is not Status.COMPLETED:
                yield child
                yield from child.to_revive(set())

    def lose_reservations(self) -> None:
        """Nobody settles them any more."""
        for amount in self.reserved.values():
            self.top.spent += amount
            self.top.lost += amount
        self.reserved.clear()

    def disown(self) -> None:
        """Its ownership ends."""
        self.fence = None
        self.lose_reservations()

    def wake(self) -> None:
        """Something that it waited for is there."""
        self.signals += 1
        self.parked = False
        if self.status is Status.AWAITING_INPUT:
            self.status = Status.RUNNING

    def end(self, status: Status, output: str | None = None, *, orphan: bool = False) -> None:
        """It ends, with all below it; its parent is told unless that ends as well."""
        for child in self.spawning:
            if not child.over:
                child.end(Status.CANCELLED, orphan=True)
        for asked in self.asked.values():
            if asked.state == "open":
                asked.state = "closed"
        self.disown()
        self.status, self.output, self.parked = status, output, False
        self.naps = self.nap_is_over = self.overdue = False
        if not orphan:
            self.tell_parent()

    def tell_parent(self) -> None:
        """Its end is written into its parent's journal, and wakes that."""
        parent = self.parent
        if parent is None or parent.over or parent.spawned.get(self.key) is not self:
            return
        if self.key not in parent.ended:
            parent.ended[self.key] = (self.run_id, self.status.value, self.output)
            parent.wake()

    def lapse(self, suspect_after: int) -> None:
        """Its owner was not heard of; a suspect is not to blame, as here none has a process of its own."""
        self.crashes = min(self.crashes + 1, suspect_after)
        self.disown()

    def crash(self, limit: int) -> None:
        """Its owner died."""
        self.crashes += 1
        self.disown()
        if self.crashes >= limit:
            self.poisoned = True
            self.end(Status.FAILED)

    def revive(self, aside: set[str]) -> None:
        """A retry of its tree takes it along; these steps are done again."""
        if self.parent:
            self.parent.ended.pop(self.key, None)
        self.status, self.output, self.crashes, self.poisoned = Status.PENDING, None, 0, False
        self.retries += 1
        self.parked, self.base, self.waited = False, None, 0
        self.committed -= aside
        for key in aside:
            self.spawned.pop(key, None)
            self.ended.pop(key.removesuffix("/end"), None)
            if key in self.asked and self.asked[key].state != "closed":
                self.former[key] = self.asked.pop(key)
        self.napped = self.napped and "nap" not in aside
        self.before = {*self.spawned, *(["nap"] if self.napped else [])}
