from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.machine import weights
from hetmemd.machine.topology import Machine, Node


def machine_with(*bandwidths: int | None, table: dict[int, int] | None = None) -> Machine:
    nodes = {number: Node(number, frozenset(), 1 << 30, bandwidth=each) for number, each in enumerate(bandwidths)}
    return Machine(nodes, table)


@pytest.mark.parametrize(
    ("bandwidths", "expected"),
    [
        ((300000, 300000, 100000, 100000), [3, 3, 1, 1]),
        ((256000, 64000), [25, 6]),
        ((204800, 24000), [28, 3]),
        ((72000, 26000), [23, 8]),
        ((500000, 1000), [31, 1]),
        ((200, 50), [25, 6]),
        ((7,), [1]),
    ],
)
def test_bandwidth_is_the_kernels_reduction(bandwidths: tuple[int, ...], expected: list[int]) -> None:
    machine = machine_with(*bandwidths)
    assert list(weights.bandwidth(machine, machine.memory_nodes).values()) == expected


def test_a_subset_keeps_the_weights_of_the_whole_machine() -> None:
    """As the kernel's table does: it knows no policies."""
    machine = machine_with(300, 300, 100, 100)
    assert weights.bandwidth(machine, {0, 2}) == {0: 3, 2: 1}
    assert weights.bandwidth(machine, {2, 3}) == {2: 1, 3: 1}
    assert weights.bandwidth(machine_with(400, 200, 200), {0, 1}) == {0: 2, 1: 1}


def test_without_figures_nothing_is_guessed() -> None:
    with pytest.raises(weights.NoFiguresError, match=r"node 1: state weights"):
        weights.bandwidth(machine_with(100, None), {0, 1})


def test_a_node_without_figures_that_is_not_asked_for_counts_as_in_the_kernel() -> None:
    assert weights.bandwidth(machine_with(300, 100, None), {0, 1}) == {0: 24, 1: 8}


def test_capacity_is_by_memory() -> None:
    machine = Machine({0: Node(0, frozenset(), 3 << 30), 1: Node(1, frozenset(), 1 << 30)})
    assert weights.capacity(machine, {0, 1}) == {0: 3, 1: 1}


def test_kernel_is_the_table_as_it_stands() -> None:
    assert weights.kernel(machine_with(1, 1, table={0: 200, 1: 7}), {0, 1}) == {0: 200, 1: 7}
    with pytest.raises(weights.NoFiguresError, match=r"6\.9"):
        weights.kernel(machine_with(1, 1), {0})
    with pytest.raises(weights.NoFiguresError, match="node 1"):
        weights.kernel(machine_with(1, 1, table={0: 1}), {0, 1})


def test_agreement_is_of_ratios() -> None:
    machine = machine_with(1, 1, table={0: 6, 1: 2})
    assert weights.agrees_with_kernel(machine, {0: 3, 1: 1})
    assert not weights.agrees_with_kernel(machine, {0: 3, 1: 2})
    assert not weights.agrees_with_kernel(machine_with(1, 1), {0: 1, 1: 1})


@given(st.dictionaries(st.integers(0, 63), st.integers(0, 4_000_000), min_size=1, max_size=16))
def test_reduced_weights_fit_the_kernels_table(figures: dict[int, int]) -> None:
    found = weights.reduce(figures)
    assert found.keys() == figures.keys()
    assert all(1 <= weight <= weights.LARGEST for weight in found.values())
    assert math.gcd(*found.values()) == 1
    ordered = [found[node] for _, node in sorted((figure, node) for node, figure in figures.items())]
    assert ordered == sorted(ordered)


def kernels_reduction(bandwidths: list[int]) -> list[int]:
    """reduce_interleave_weights() of mm/mempolicy.c (6.16), line by line."""
    sum_bw = sum(bandwidths)
    new_iw, iw_gcd = [], 0
    for bw in bandwidths:
        scaling_factor = 32 * bw
        iw = scaling_factor // sum_bw if bw and sum_bw < scaling_factor else 1
        iw_gcd = math.gcd(iw_gcd or iw, iw)
        new_iw.append(iw)
    return [iw // iw_gcd for iw in new_iw]


@given(st.lists(st.none() | st.integers(1, 4_000_000), min_size=1, max_size=8), st.data())
def test_bandwidth_is_the_kernels_reduction_for_any_figures_and_any_nodes(
    bandwidths: list[int | None], data: st.DataObject
) -> None:
    machine = machine_with(*bandwidths)
    known = [node for node, bandwidth in enumerate(bandwidths) if bandwidth]
    chosen = data.draw(st.sets(st.sampled_from(known), min_size=1)) if known else set()
    expected = kernels_reduction([bandwidth or 0 for bandwidth in bandwidths])
    assert weights.bandwidth(machine, chosen) == {node: expected[node] for node in sorted(chosen)}
