"""In which order the nodes of a graph with loops are evaluated."""

from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from typing import NamedTuple

from braintrace_nn._errors import ConfigurationError

Edge = tuple[str, str]


class Schedule(NamedTuple):
    """Order of evaluation of one step.

    Attributes
    ----------
    order : tuple of str
        Each node after those whose present output it needs.
    delayed : frozenset of edges
        Edges that carry the output of the step before.
    """

    order: tuple[str, ...]
    delayed: frozenset[Edge]


def schedule(nodes: Sequence[str], edges: Sequence[Edge], source: str, remembering: Iterable[str]) -> Schedule:
    """Open every loop behind the node with memory that is farthest from the input.

    Parameters
    ----------
    nodes, edges
    source : str
        The input node.
    remembering : iterable of str
        Nodes whose output of the step before is known.

    Raises
    ------
    ConfigurationError
        If a loop holds no such node.

    Examples
    --------
    >>> edges = [("in", "w"), ("w", "lif"), ("lif", "rec"), ("rec", "lif")]
    >>> schedule(["in", "w", "lif", "rec"], edges, "in", ["lif"]).delayed
    frozenset({('lif', 'rec')})
    """
    distance = _distances(edges, source)
    remembering, delayed = set(remembering), set()
    while True:
        ahead = {node: _reached(node, [e for e in edges if e not in delayed]) for node in nodes}
        looped = [node for node in nodes if node in ahead[node]]
        if not looped:
            break
        candidates = [node for node in looped if node in remembering]
        if not candidates:
            raise ConfigurationError(
                "The graph has a loop without memory.",
                found=" -> ".join(looped),
                expected="a neuron, whose output of the step before is known, in every loop",
            )
        last = max(candidates, key=lambda node: distance.get(node, len(nodes)))
        delayed |= {(a, b) for a, b in edges if a == last and (b == last or last in ahead[b])}
    before = {node: {a for a, b in edges if b == node and (a, b) not in delayed} for node in nodes}
    return Schedule(tuple(TopologicalSorter(before).static_order()), frozenset(delayed))


def _distances(edges: Sequence[Edge], source: str) -> dict[str, int]:
    distance, border = {source: 0}, [source]
    while border:
        found = dict.fromkeys(b for a, b in edges if a in border and b not in distance)
        distance |= dict.fromkeys(found, distance[border[0]] + 1)
        border = list(found)
    return distance


def _reached(node: str, edges: Sequence[Edge]) -> set[str]:
    found: set[str] = set()
    border = [node]
    while border:
        here = border.pop()
        for a, b in edges:
            if a == here and b not in found:
                found.add(b)
                border.append(b)
    return found
