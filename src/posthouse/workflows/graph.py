"""What is wrong with a graph of subtasks, in words that a planner can use. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TypeAlias

_SHOWN_CHARACTERS = 160

Graph: TypeAlias = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Caps:
    """How large a plan may be: its subtasks, how many wait for one another in a row, how many for the same one."""

    nodes: int = 50
    depth: int = 10
    fan_out: int = 20


CAPS = Caps()


def depths(graph: Graph) -> dict[str, int]:
    """How many must have ended before each in a row, of a graph without cycles."""
    depth: dict[str, int] = {}
    for one in TopologicalSorter(graph).static_order():
        depth[one] = 1 + max((depth[before] for before in graph[one]), default=-1)
    return depth


def unknown_agents(agents: Mapping[str, str], known: Iterable[str]) -> Iterator[str]:
    """One problem for each subtask whose agent there is not."""
    known = tuple(known)
    for one, agent in agents.items():
        if agent not in known:
            yield f"the agent {agent!r} of subtask {one!r} is unknown; there are: {_listed(known)}"


def twice(ids: Iterable[str]) -> str:
    """The problem that ids are used more than once, or ""."""
    repeated = [one for one, count in Counter(ids).items() if count > 1]
    if not repeated:
        return ""
    return (
        f"these ids are used more than once: {_listed(repeated)}; give each subtask one of its own"
    )


def wrong_in(graph: Graph, caps: Caps | None) -> Iterator[str]:
    """Every problem of the graph; what depends on what must be known before there is a cycle or a size."""
    wrong = list(_wrong_dependencies(graph))
    yield from wrong
    if wrong:
        return
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield _cycle(error.args[1])
    else:
        yield from _too_large(graph, caps) if caps else ()


def _wrong_dependencies(graph: Graph) -> Iterator[str]:
    for one, depends_on in graph.items():
        if one in depends_on:
            yield f"subtask {one!r} depends on itself"
        if unknown := [before for before in depends_on if before not in graph]:
            yield f"subtask {one!r} depends on what is no subtask of the plan: {_listed(unknown)}"


def _cycle(nodes: list[str]) -> str:
    return (
        f"these subtasks wait for each other in a circle: {_chain(nodes)} "
        "(each would need the one before it): take one of these dependencies away"
    )


def _too_large(graph: Graph, caps: Caps) -> Iterator[str]:
    depth = depths(graph)
    if (deepest := max(depth.values()) + 1) > caps.depth:
        yield (
            f"the plan is {deepest} subtasks deep, at most {caps.depth} may wait for one another"
            f" in a row: {_chain(_longest(graph, depth))}"
        )
    followers = Counter(before for depends_on in graph.values() for before in depends_on)
    wide = [f"{count} on {one!r}" for one, count in followers.items() if count > caps.fan_out]
    if wide:
        yield f"too many subtasks depend on one, at most {caps.fan_out} may: {_listed(wide)}"
    first = sum(not depends_on for depends_on in graph.values())
    if first > caps.fan_out:
        yield f"{first} subtasks depend on nothing and would begin at once, at most {caps.fan_out} may"


def _longest(graph: Graph, depth: Mapping[str, int]) -> list[str]:
    """One of the longest chains, from its beginning."""
    chain = [max(graph, key=depth.__getitem__)]
    while graph[chain[-1]]:
        chain.append(max(graph[chain[-1]], key=depth.__getitem__))
    return chain[::-1]


def _chain(ids: list[str]) -> str:
    """The ids in order; of a long chain its beginning and its end."""
    shown = " -> ".join(ids)
    if len(shown) <= _SHOWN_CHARACTERS:
        return shown
    first = ids[:1]
    for one in ids[1:-1]:
        if len(" -> ".join([*first, one, "...", ids[-1]])) > _SHOWN_CHARACTERS:
            break
        first.append(one)
    return " -> ".join([*first, "...", ids[-1]])


def _listed(names: Iterable[str]) -> str:
    """The names, as many as fit on a line; and how many there are besides."""
    names = tuple(names)
    shown, room = list[str](), _SHOWN_CHARACTERS
    for name in names:
        room -= len(name) + 2
        if shown and room < 0:
            break
        shown.append(name[:_SHOWN_CHARACTERS])
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return ", ".join(shown) + more
