"""The planner's promises, as properties."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hetmemd.memory import plan

Placement = NDArray[np.int16]
NODES = range(5)

targets = st.dictionaries(st.sampled_from(NODES), st.integers(1, 9), min_size=1).map(plan.ratio)
large_targets = st.dictionaries(st.sampled_from(NODES), st.integers(1, 99), min_size=1).map(plan.ratio)
placements = st.lists(st.integers(-1, max(NODES)), max_size=300).map(lambda found: np.array(found, dtype=np.int16))
long_runs = st.lists(st.tuples(st.integers(-1, max(NODES)), st.integers(1, 80)), max_size=12).map(
    lambda runs: np.repeat([node for node, _ in runs], [count for _, count in runs]).astype(np.int16)
)
sizes_of = st.sampled_from([1, 16, 512])


@st.composite
def spans(draw: st.DrawFn) -> tuple[Placement, NDArray[np.int32]]:
    """Folios of mixed sizes."""
    nodes = draw(placements | long_runs)
    sizes = draw(st.lists(sizes_of, min_size=len(nodes), max_size=len(nodes)))
    return nodes, np.array(sizes, dtype=np.int32)


def carried_out(nodes: Placement, moves: plan.Moves) -> Placement:
    after = nodes.copy()
    after[moves.index] = moves.destination
    return after


def windows(nodes: Placement, target: plan.Ratio) -> list[Placement]:
    """The windows of folios that can be moved, the incomplete one at the end left out."""
    there = nodes[nodes >= 0]
    length = sum(weight for _, weight in target.weights)
    return [there[begin : begin + length] for begin in range(0, len(there) - length + 1, length)]


@given(placements | long_runs, targets)
def test_every_window_has_the_weights(nodes: Placement, target: plan.Ratio) -> None:
    after = carried_out(nodes, plan.plan(nodes, None, target))
    for window in windows(after, target):
        assert {node: int((window == node).sum()) for node in {*window.tolist()}} == dict(target.weights)


@given(placements | long_runs, targets)
def test_the_whole_is_right_to_one_folio(nodes: Placement, target: plan.Ratio) -> None:
    after = carried_out(nodes, plan.plan(nodes, None, target))
    there = after[after >= 0]
    for node, share in target.shares.items():
        assert abs(int((there == node).sum()) - share * len(there)) <= 1


def fewest(rest: Placement, target: plan.Ratio) -> int:
    """Moves without which less than a window has not of each node its share, rounded up or down."""
    length = target.window
    down = {node: len(rest) * weight // length for node, weight in target.weights}
    up = [node for node, weight in target.weights if len(rest) * weight % length]
    more = len(rest) - sum(down.values())
    return min(
        sum(max(count + (node in chosen) - int((rest == node).sum()), 0) for node, count in down.items())
        for chosen in itertools.combinations(up, more)
    )


@given(placements | long_runs, targets)
def test_moves_are_the_sum_of_the_deficits(nodes: Placement, target: plan.Ratio) -> None:
    whole = windows(nodes, target)
    rest = nodes[nodes >= 0][len(whole) * target.window :]
    least = sum(max(weight - int((window == node).sum()), 0) for window in whole for node, weight in target.weights)
    assert len(plan.plan(nodes, None, target)) == least + fewest(rest, target)


@given(spans(), targets)
def test_a_second_plan_is_empty(span: tuple[Placement, NDArray[np.int32]], target: plan.Ratio) -> None:
    nodes, sizes = span
    after = carried_out(nodes, plan.plan(nodes, sizes, target))
    assert len(plan.plan(after, sizes, target)) == 0


@given(spans(), targets)
def test_nothing_moves_twice_or_in_vain(span: tuple[Placement, NDArray[np.int32]], target: plan.Ratio) -> None:
    nodes, sizes = span
    moves = plan.plan(nodes, sizes, target)
    assert all(first < second for first, second in pairwise(moves.index.tolist()))
    assert (nodes[moves.index] >= 0).all()
    assert (nodes[moves.index] != moves.destination).all()
    assert {*moves.destination.tolist()} <= {node for node, _ in target.weights}


@given(spans(), targets)
def test_each_size_is_planned_for_itself(span: tuple[Placement, NDArray[np.int32]], target: plan.Ratio) -> None:
    nodes, sizes = span
    after = carried_out(nodes, plan.plan(nodes, sizes, target))
    for size in (1, 16, 512):
        alone = nodes[sizes == size]
        assert (after[sizes == size] == carried_out(alone, plan.plan(alone, None, target))).all()


def piecewise(nodes: Placement, sizes: NDArray[np.int32], pieces: list[int], target: plan.Ratio) -> dict[int, int]:
    """Where each folio that moves goes, planned in pieces that end behind these folios."""
    found: dict[int, int] = {}
    rest = np.zeros(0, dtype=np.int64)
    ends = [*sorted(min(end, len(nodes)) for end in pieces), len(nodes)]
    for begin, end in pairwise([0, *ends]):
        at = np.concatenate([rest, np.arange(begin, end)])
        moves = plan.plan(nodes[at], sizes[at], target, is_last=False)
        found |= zip(at[moves.index].tolist(), moves.destination.tolist(), strict=True)
        rest = at[moves.rest]
        assert all(count < target.window for count in np.unique(sizes[rest], return_counts=True)[1].tolist())
    moves = plan.plan(nodes[rest], sizes[rest], target)
    return found | dict(zip(rest[moves.index].tolist(), moves.destination.tolist(), strict=True))


@given(spans(), st.lists(st.integers(0, 300), max_size=8), large_targets)
def test_pieces_are_planned_as_the_whole(
    span: tuple[Placement, NDArray[np.int32]], pieces: list[int], target: plan.Ratio
) -> None:
    nodes, sizes = span
    whole = plan.plan(nodes, sizes, target)
    assert piecewise(nodes, sizes, pieces, target) == dict(
        zip(whole.index.tolist(), whole.destination.tolist(), strict=True)
    )


@pytest.mark.parametrize("weights", [{0: 40, 1: 17}, {0: 25, 1: 6, 2: 2}, {0: 100, 1: 1}, {0: 25, 1: 6}])
@pytest.mark.parametrize("piece", [32, 33, 1024])
def test_what_lies_right_stays_though_a_window_is_longer_than_a_piece(weights: dict[int, int], piece: int) -> None:
    """Such as 32 huge folios, which are 64 MiB."""
    target = plan.ratio(weights)
    laid = np.repeat(list(weights), list(weights.values())).astype(np.int16)
    nodes = np.tile(np.roll(laid, 5), 2000 // len(laid))
    sizes = np.full(len(nodes), 512, dtype=np.int32)
    assert piecewise(nodes, sizes, list(range(0, len(nodes), piece)), target) == {}


def off_by(after: Placement, target: plan.Ratio, lengths: range) -> dict[int, float]:
    """By node: how many folios more or fewer than its share, at most, a stretch of any of these lengths holds."""
    found = {}
    for node, share in target.shares.items():
        running = np.concatenate([[0], np.cumsum(after == node)])
        off = [np.abs(running[length:] - running[:-length] - share * length).max() for length in lengths]
        found[node] = max(off, default=0.0)
    return found


@given(st.sampled_from(NODES), st.integers(0, 400), targets, st.integers(0, 100))
def test_memory_of_one_node_becomes_even(node: int, length: int, target: plan.Ratio, missing: int) -> None:
    """Stretches at any offset, of at least the sum of the weights."""
    nodes = np.full(length, node, dtype=np.int16)
    nodes[:missing] = -1
    after = carried_out(nodes, plan.plan(nodes, None, target))[missing:]
    bound = 1.0 if len(target.weights) <= 2 else 2.0
    # The end is rounded so that less moves.
    whole = len(after) // target.window * target.window
    assert all(off <= bound + 1e-9 for off in off_by(after[:whole], target, range(target.window, whole + 1)).values())
    # And what is rounded there is less than one folio of each node.
    assert all(off < bound + 1.0 for off in off_by(after, target, range(target.window, len(after) + 1)).values())


@given(placements | long_runs, targets)
def test_stretches_at_any_offset_are_as_near_as_is_said(nodes: Placement, target: plan.Ratio) -> None:
    after = carried_out(nodes, plan.plan(nodes, None, target))
    after = after[after >= 0]
    window, weights = target.window, dict(target.weights)
    for node, off in off_by(after, target, range(window, len(after) + 1)).items():
        assert off <= 2 * weights[node] * (window - weights[node]) / window + 1e-9
    whole = after[: len(after) // window * window]
    for node, off in off_by(whole, target, range(window, len(whole) + 1, window)).items():
        assert off <= min(weights[node], window - weights[node]) + 1e-9


@pytest.mark.parametrize(("weights", "share"), [({0: 3, 1: 1}, 0.02), ({0: 25, 1: 6}, 0.07), ({0: 100, 1: 27}, 0.1)])
def test_of_memory_that_lay_by_chance_most_stretches_are_off_by_one_folio_at_most(
    weights: dict[int, int], share: float
) -> None:
    target = plan.ratio(weights)
    nodes = np.random.default_rng(1).integers(0, 2, 125 * target.window).astype(np.int16)
    after = carried_out(nodes, plan.plan(nodes, None, target))
    running = np.concatenate([[0], np.cumsum(after == 1)])
    off = [
        np.abs(running[length:] - running[:-length] - target.shares[1] * length) > 1 + 1e-9
        for length in range(target.window, 3 * target.window, max(target.window // 7, 1))
    ]
    assert np.concatenate(off).mean() <= share


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7).map(tuple))
def test_the_sequence_is_even(weights: tuple[int, ...]) -> None:
    places = plan.sequence(weights)
    period, count = sum(weights), len(weights)
    bound = 1 - 1 / (2 * count - 2) if count > 1 else 0
    for slot, weight in enumerate(weights):
        assert int((places == slot).sum()) == weight
        running = np.cumsum(places == slot)
        assert np.abs(running - np.arange(1, period + 1) * weight / period).max() <= bound + 1e-9


@given(placements, st.sets(st.sampled_from(NODES), min_size=1))
def test_a_mask_moves_what_is_outside_to_the_nearest(nodes: Placement, mask: set[int]) -> None:
    distances = {a: {b: 10 + abs(a - b) for b in NODES} for a in NODES}
    target = plan.within(frozenset(mask), distances)
    moves = plan.plan(nodes, None, target)
    assert moves.index.tolist() == [place for place, node in enumerate(nodes) if node >= 0 and node not in mask]
    for source, destination in zip(nodes[moves.index].tolist(), moves.destination.tolist(), strict=True):
        assert (abs(destination - source), destination) == min((abs(to - source), to) for to in mask)
    assert len(plan.plan(carried_out(nodes, moves), None, target)) == 0


def test_a_full_node_is_passed_over() -> None:
    distances = {0: {1: 20, 2: 30}}
    target = plan.within([1, 2], distances)
    nodes = np.array([0, 1, 2], dtype=np.int16)
    full = plan.Within(target.nodes, target.nearest, frozenset({1}))
    assert plan.plan(nodes, None, full).destination.tolist() == [2]
    assert len(plan.plan(nodes, None, plan.Within(target.nodes, target.nearest, frozenset({1, 2})))) == 0


@pytest.mark.parametrize(
    ("shares", "weights"),
    [
        ({0: 0.75, 1: 0.25}, ((0, 3), (1, 1))),
        ({0: 28 / 31, 1: 3 / 31}, ((0, 28), (1, 3))),
        ({0: 256.0, 3: 64.0}, ((0, 4), (3, 1))),
        ({2: 1 / 3, 5: 1 / 3, 9: 1 / 3}, ((2, 1), (5, 1), (9, 1))),
        ({0: 0.4, 1: 0.0, 2: 0.6}, ((0, 2), (2, 3))),
        ({7: 0.1}, ((7, 1),)),
        ({0: 255 / 509, 1: 254 / 509}, ((0, 255), (1, 254))),
    ],
)
def test_shares_become_the_smallest_weights(shares: dict[int, float], weights: tuple[tuple[int, int], ...]) -> None:
    assert plan.ratio(shares).weights == weights


@given(st.dictionaries(st.integers(0, 9), st.floats(0.001, 1.0), min_size=1))
def test_any_shares_are_met_nearly(shares: dict[int, float]) -> None:
    total = math.fsum(shares.values())
    found = plan.ratio(shares).shares
    assert found.keys() == shares.keys()
    assert all(abs(found[node] - share / total) <= 1 / 1000 for node, share in shares.items())


def test_nothing_to_aim_at_is_an_error() -> None:
    with pytest.raises(ValueError, match="no node"):
        plan.ratio({0: 0.0})
    with pytest.raises(ValueError, match="no node"):
        plan.within([])


def test_distance() -> None:
    target = plan.ratio({0: 3, 1: 1})
    assert target.distance({}) == 0
    assert target.distance({0: 3 << 20, 1: 1 << 20}) == 0
    assert target.distance({0: 100}) == pytest.approx(0.25)
    assert target.distance({2: 100}) == 1
    mask = plan.within([1, 2])
    assert mask.distance({1: 90, 0: 10}) == pytest.approx(0.1)
    assert mask.distance({1: 1, 2: 5}) == 0
