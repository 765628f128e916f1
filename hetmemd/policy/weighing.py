"""Explicit weights, by number and by selector, as the weight of each node or place. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetmemd.machine.topology import Machine
from hetmemd.policy.faults import shown
from hetmemd.policy.nodes import NodeSet


def by_numbers(given: Sequence[tuple[NodeSet, int]]) -> dict[int, list[int]]:
    """What each number is given, without selectors: that needs no machine. More than one weight is a contradiction."""
    found: dict[int, list[int]] = {}
    for named, weight in given:
        if named.is_plain:
            for number in sorted(named.plainly):
                if weight not in found.setdefault(number, []):
                    found[number].append(weight)
    return found


def besides(chosen: NodeSet, given: Sequence[tuple[NodeSet, int]]) -> frozenset[int]:
    """Nodes that are given a weight by number, and no memory; none where a selector leaves that to the machine."""
    return frozenset(by_numbers(given)) - chosen.plainly if chosen.is_plain else frozenset()


def explicit(
    given: Sequence[tuple[NodeSet, int]], seats: Mapping[int, int], machine: Machine, cpus: frozenset[int] | None = None
) -> dict[int, int]:
    """The weight of each number in `seats` that is given one, for a cgroup with these CPUs. A number beats a selector.

    `seats` is the node that each stands for: itself, or with relative nodes what the place came to. Numbers are meant
    as in `nodes`; a selector means nodes, and gives its weight to the places that stand for them.
    `ValueError` where two selectors disagree over a node that no number names.
    """
    by_number: dict[int, int] = {}
    by_selector: dict[int, list[tuple[int, str]]] = {}
    for named, weight in given:
        meant = named.select(machine, cpus)
        for number, node in seats.items():
            if named.is_plain and number in meant:
                by_number[number] = weight
            elif not named.is_plain and node in meant:
                by_selector.setdefault(number, []).append((weight, named.text))
    found: dict[int, int] = {}
    for node in sorted(by_number.keys() | by_selector.keys()):
        weights = by_selector.get(node, [])
        if node not in by_number and len({weight for weight, _ in weights}) > 1:
            (one, first), (other, second) = weights[0], next(each for each in weights if each[0] != weights[0][0])
            raise ValueError(f"node {node} has two weights: {one} as {shown(first)} and {other} as {shown(second)}")
        found[node] = by_number[node] if node in by_number else weights[0][0]
    return found
