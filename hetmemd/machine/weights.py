"""Interleave weights computed from what the machine is. Pure; 1 to 255, as the kernel's table holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from hetmemd.machine.topology import Machine

LARGEST = 255
_SCALE = 32  # `weightiness` in mm/mempolicy.c


class NoFiguresError(Exception):
    """The machine does not tell what the weights would be computed from; the text says which nodes, and what to do."""


def reduce(figures: Mapping[int, int]) -> dict[int, int]:
    """The kernel's reduction of bandwidths to small whole weights (`reduce_interleave_weights`, mm/mempolicy.c, 6.16).

    Each is scaled so that all sum to about 32, rounded down but to no less than 1, and divided by the common divisor.
    """
    total = sum(figures.values())
    weights = {
        node: _SCALE * figure // total if figure and total < _SCALE * figure else 1 for node, figure in figures.items()
    }
    divisor = math.gcd(*weights.values()) if weights else 1
    return {node: weight // divisor for node, weight in weights.items()}


def bandwidth(machine: Machine, nodes: Iterable[int]) -> dict[int, int]:
    """By bandwidth, equal to what the kernel's `auto` holds for `nodes`. `NoFiguresError` where one has none.

    The reduction runs over all nodes with memory. One without figures that is not asked for counts as in the kernel.
    """
    figures = {node: machine.nodes[node].bandwidth or 0 for node in machine.memory_nodes}
    return _chosen(figures, nodes, "bandwidth", 'state weights = {...} by hand, or "capacity"')


def capacity(machine: Machine, nodes: Iterable[int]) -> dict[int, int]:
    """By size of memory, reduced in the same way. `NoFiguresError` if a node's size is not known."""
    figures = {node: machine.nodes[node].memory for node in machine.memory_nodes}
    return _chosen(figures, nodes, "size", "state weights = {...} by hand")


def kernel(machine: Machine, nodes: Iterable[int]) -> dict[int, int]:
    """The kernel's global table as it stands. `NoFiguresError` before 6.9, which has none, or where it is not known."""
    table = machine.kernel_weights
    if table is None and not machine.knows_weights:
        raise NoFiguresError("the kernel's table of interleave weights is not known here")
    if table is None:
        raise NoFiguresError(
            "this kernel has no table of interleave weights (Linux 6.9 and later have): state weights = {...} by hand"
        )
    missing = sorted(node for node in nodes if node not in table)
    if missing:
        raise NoFiguresError(f"the kernel's table of interleave weights has no node {_names(missing)}")
    return {node: table[node] for node in sorted(nodes)}


def agrees_with_kernel(machine: Machine, weights: Mapping[int, int]) -> bool:
    """True where the kernel's global table gives the same ratio between these nodes."""
    table = machine.kernel_weights
    if table is None or any(not table.get(node) for node in weights):
        return False
    return _reduced(weights) == _reduced({node: table[node] for node in weights})


def _reduced(weights: Mapping[int, int]) -> dict[int, int]:
    divisor = math.gcd(*weights.values()) if weights else 1
    return {node: weight // divisor for node, weight in weights.items()}


def _chosen(figures: Mapping[int, int], nodes: Iterable[int], what: str, way_round: str) -> dict[int, int]:
    wanted = sorted(nodes)
    missing = [node for node in wanted if not figures.get(node)]
    if missing:
        raise NoFiguresError(f"the machine does not tell the {what} of node {_names(missing)}: {way_round}")
    weights = reduce(figures)
    return {node: weights[node] for node in wanted}


def _names(nodes: Iterable[int]) -> str:
    return ", ".join(map(str, nodes))
