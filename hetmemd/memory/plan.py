"""Which folios go where: the fewest moves that give the ratio, everywhere. Pure.

Folios that can be moved are cut, in the order of their addresses, into **windows**: as many folios of one size as the
sum of the weights (in lowest terms). A window is right when it holds each node's weight exactly; what is missing on a
node is its deficit. The plan is the sum of the windows' deficits, and no plan that makes all windows right is shorter.
So a reader that streams through memory meets all nodes in every window, not one after the other. Three things follow:

- A window that is right is left alone, whatever the order in it: memory that the kernel interleaved itself, by any
  phase, is not touched, and a second plan after the first is empty.
- Within a window there is a choice of *which* folios move, at the same price. Those go that bring the window nearest to
  one even sequence of nodes (`sequence`), the same for all windows. Memory that was all on one node so becomes that
  sequence, in which every window at any offset, of at least the sum of the weights, is off by one folio at most
  for two nodes (by less than two for more).
- What is left at the end of a span, less than a window, gets its piece of the same sequence, and the next span goes on
  with the sequence where this one ended (`Phase`): the whole is right to one folio for each size of folio.

Folios of different sizes (in powers of two, rounded down) have windows of their own: a small page cannot make up for a
huge one.
Folios that are not there or cannot be moved (negative node) are left out of the windows, and so disturb no ratio.

Windows are of folios that are there, not of address space. The kernel lays pages by their offset, and of memory with
holes no window of it need be right though the whole is. Measured on 64 MiB that the kernel had interleaved 3:1: nothing
is planned while it is whole, whatever the order of its first touches, 0.034 moves per page after a tenth was given back
by chance, 0.109 after half was; windows of address space, in which a node may have no more than its weight, would plan
nothing. But in those, pages that are there one in a window (every fourth page, a table of 16 KiB rows) would all be
right on one node. So a window of pages is the default and the only way; what it costs is rarely paid, as no pass begins
while the whole is within its tolerance.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Nodes = NDArray[np.int16]
Phase = Mapping[int, int]
"""By order of folio (log2 of its pages): how many places of the sequence were given out before, modulo its length."""
START: Phase = {}

STAYS = -1
LONGEST_WINDOW = 4096
"""Folios; weights with a larger sum are rounded to the nearest shares that fit: 0.02 % off at most."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Pages are to be in a ratio: interleave, weighted-interleave."""

    weights: tuple[tuple[int, int], ...]
    """(node, weight), ascending by node, weights positive and in lowest terms."""

    @property
    def shares(self) -> dict[int, float]:
        total = sum(weight for _, weight in self.weights)
        return {node: weight / total for node, weight in self.weights}

    def distance(self, pages: Mapping[int, int]) -> float:
        """Total variation, 0 to 1: half the sum of the differences between shares that are and that should be."""
        total = sum(pages.values())
        if not total:
            return 0.0
        shares = self.shares
        return 0.5 * sum(abs(pages.get(node, 0) / total - shares.get(node, 0.0)) for node in {*pages, *shares})


@dataclass(frozen=True, slots=True)
class Within:
    """Pages may be on any of some nodes, in no ratio: bind, preferred (of one node), preferred-many."""

    nodes: tuple[int, ...]
    """Ascending."""
    nearest: Mapping[int, tuple[int, ...]]
    """For a node outside of `nodes`: `nodes` by distance from it, nearest first. One that is missing here is served in
    ascending order."""
    full: frozenset[int] = frozenset()
    """Nodes that take nothing more for now; what is on them is right."""

    @property
    def shares(self) -> dict[int, float]:
        """None: every division among the nodes is right."""
        return {}

    def distance(self, pages: Mapping[int, int]) -> float:
        """The share of pages that are elsewhere: total variation from the nearest division that is right."""
        total = sum(pages.values())
        return sum(count for node, count in pages.items() if node not in self.nodes) / total if total else 0.0

    def destination(self, node: int) -> int:
        """Where a page on `node` goes: `node` itself where it is right, or where nothing can be done about it."""
        if node in self.nodes:
            return node
        return next((to for to in self.nearest.get(node, self.nodes) if to not in self.full), node)


Target = Ratio | Within


def ratio(shares: Mapping[int, float]) -> Ratio:
    """The target for shares or weights, of any scale; those of 0 are left out. `ValueError` where nothing is left."""
    kept = sorted((node, share) for node, share in shares.items() if share > 0)
    if not kept:
        raise ValueError("no node with a share")
    return Ratio(tuple(zip((node for node, _ in kept), _lowest_terms(tuple(share for _, share in kept)), strict=True)))


def within(nodes: Sequence[int] | frozenset[int], distances: Mapping[int, Mapping[int, int]] | None = None) -> Within:
    """The target for a mask. `distances[a][b]` is from a to b as the firmware says. `ValueError` for an empty mask."""
    mask = tuple(sorted(nodes))
    if not mask:
        raise ValueError("no node")
    nearest = {
        node: tuple(sorted(mask, key=lambda to, row=row: (row.get(to, 1 << 30), to)))  # type: ignore[misc]
        for node, row in (distances or {}).items()
        if node not in mask
    }
    return Within(mask, nearest)


@dataclass(frozen=True, slots=True)
class Moves:
    """A plan. No folio is in it twice, and none that is in place."""

    index: NDArray[np.int64]
    """Which folios of the span, ascending."""
    destination: Nodes
    """The node that each goes to."""
    phase: Phase
    """To be given to the plan of the span that follows."""

    def __len__(self) -> int:
        return len(self.index)


def plan(nodes: Nodes, sizes: NDArray[np.int32] | None, target: Target, phase: Phase = START) -> Moves:
    """The moves for one span.

    `nodes`: of each folio in the order of addresses; negative for one that is not there or cannot be moved.
    `sizes`: pages of each folio, 1 and more; None where all are of one page. One entry stands for a whole folio, so
    none is split.
    """
    if isinstance(target, Within):
        return _plan_within(nodes, target, phase)
    orders = np.zeros(1, dtype=np.int32) if sizes is None or not (sizes > 1).any() else np.frexp(sizes)[1] - 1
    to = np.full(len(nodes), STAYS, dtype=np.int16)
    following = dict(phase)
    for order in np.unique(orders).tolist():
        chosen = np.flatnonzero((nodes >= 0) & (orders == order))
        to[chosen] = _plan_ratio(nodes.take(chosen), target, phase.get(order, 0))
        following[order] = (phase.get(order, 0) + len(chosen)) % sum(weight for _, weight in target.weights)
    index = np.flatnonzero(to != STAYS)
    return Moves(index, to[index], following)


def _plan_within(nodes: Nodes, target: Within, phase: Phase) -> Moves:
    there = np.unique(nodes[nodes >= 0]).tolist()
    table = np.arange(max([*there, *target.nodes]) + 1, dtype=np.int16)
    for node in there:
        table[node] = target.destination(node)
    index = np.flatnonzero((nodes >= 0) & (table[nodes] != nodes))
    return Moves(index, table[nodes[index]], phase)


def _plan_ratio(nodes: Nodes, target: Ratio, phase: int) -> Nodes:
    """Where each folio goes, or STAYS. All are of one size and can be moved."""
    if not len(nodes):
        return nodes
    names = np.array([node for node, _ in target.weights], dtype=np.int16)
    weights = tuple(weight for _, weight in target.weights)
    # From here on nodes are slots 0..m-1 in the order of the target, and m for all others.
    table = np.full(max(int(nodes.max()), int(names.max())) + 1, len(names), dtype=np.int16)
    table[names] = np.arange(len(names))
    slots = table.take(nodes)
    window = sum(weights)
    ideal = np.roll(sequence(weights), -phase)
    whole = len(slots) // window * window
    piece = ideal[: len(slots) - whole]
    # Windows are columns: numpy is slow over many short rows.
    to = np.empty(len(slots), dtype=np.int16)
    to[:whole] = _even_out(np.ascontiguousarray(slots[:whole].reshape(-1, window).T), ideal, weights).T.ravel()
    to[whole:] = _even_out(slots[whole:, None], piece, np.bincount(piece, minlength=len(names)).tolist())[:, 0]
    goes = to != STAYS
    to[goes] = names.take(to[goes])
    return to


def _even_out(slots: Nodes, ideal: Nodes, wanted: Sequence[int]) -> Nodes:
    """The slot that each goes to, or STAYS, so that `wanted` of each slot are left in every window.

    `slots` is (positions, windows); `ideal` the even sequence over the positions, which counts as `wanted` says.
    """
    held = [(slots == slot).sum(axis=0, dtype=np.int16) for slot in range(len(wanted))]
    lacking = np.flatnonzero(np.logical_or.reduce([have < want for have, want in zip(held, wanted, strict=True)]))
    if not len(lacking):
        return np.full(slots.shape, STAYS, dtype=np.int16)
    windows = slots.shape[1]
    if len(lacking) < windows:
        slots = slots.take(lacking, axis=1)
        held = [have.take(lacking) for have in held]
    # Who goes: everything on other nodes, and of each node the surplus, first of all where the sequence has another.
    goes = slots == len(wanted)
    for slot, want in enumerate(wanted):
        surplus = (held[slot] - want).clip(0)
        mine = slots == slot
        fits = mine & (ideal == slot)[:, None]
        mine ^= fits
        rank = _rank(mine)
        goes |= mine & (rank <= surplus)
        more = surplus - rank[-1]
        if more.max() > 0:
            goes |= fits & (_rank(fits) <= more)
    # Where to: what the sequence has at its place, as long as that node lacks something; the rest fills up.
    chosen = np.full(slots.shape, STAYS, dtype=np.int16)
    deficits = []
    for slot, want in enumerate(wanted):
        deficit = (want - held[slot]).clip(0)
        fits = goes & (ideal == slot)[:, None]
        rank = _rank(fits)
        chosen[fits & (rank <= deficit)] = slot
        deficits.append((deficit - rank[-1]).clip(0))
    rest = goes & (chosen == STAYS)
    if rest.any():
        rank = _rank(rest)
        upto = np.zeros_like(deficits[0])
        for slot, deficit in enumerate(deficits):
            chosen[rest & (rank > upto) & (rank <= upto + deficit)] = slot
            upto += deficit
    if len(lacking) == windows:
        return chosen
    to = np.full((len(slots), windows), STAYS, dtype=np.int16)
    to[:, lacking] = chosen
    return to


def _rank(chosen: NDArray[np.bool_]) -> NDArray[np.int16]:
    """How many were chosen in the column down to and with each place."""
    if len(chosen) > 64:
        return np.cumsum(chosen, axis=0, dtype=np.int16)
    rank = chosen.astype(np.int16)
    for place in range(1, len(rank)):
        rank[place] += rank[place - 1]
    return rank


@functools.lru_cache(maxsize=64)
def sequence(weights: tuple[int, ...]) -> Nodes:
    """The even sequence of slots 0..m-1: one period, in which slot i stands `weights[i]` times.

    Every beginning of the periodic sequence holds of each slot what its share asks for, off by at most
    1 - 1/(2m - 2): R. Tijdeman, "The chairman assignment problem", 1980. At each place, of the slots that are not
    ahead too far, that one is taken whose next turn is due first.
    """
    count, period = len(weights), sum(weights)
    if count == 1:
        return np.zeros(period, dtype=np.int16)
    steps = 2 * count - 2
    weight = np.array(weights, dtype=np.int64)
    given = np.zeros(count, dtype=np.int64)
    places = np.zeros(period, dtype=np.int16)
    for place in range(1, period + 1):
        # All in units of 1 / (period * steps), so that nothing is rounded.
        due = steps * (weight * place - period * given) >= period
        deadline = np.where(due, (period * (steps - 1) / steps + period * given) / weight, np.inf)
        slot = int(deadline.argmin())
        places[place - 1] = slot
        given[slot] += 1
    places.setflags(write=False)
    return places


@functools.lru_cache(maxsize=64)
def _lowest_terms(shares: tuple[float, ...]) -> tuple[int, ...]:
    """The smallest whole numbers in the proportion of `shares`, to the accuracy of a float; see LONGEST_WINDOW."""
    if all(float(share).is_integer() for share in shares) and sum(shares) <= LONGEST_WINDOW * 1000:
        whole = [int(share) for share in shares]
        divisor = math.gcd(*whole)
        if sum(whole) // divisor <= LONGEST_WINDOW:
            return tuple(number // divisor for number in whole)
    parts = np.array(shares, dtype=float) / math.fsum(shares)
    sums = np.arange(1, LONGEST_WINDOW + 1)[:, None]
    nearest = np.round(parts * sums)
    fits = (np.abs(parts * sums - nearest) < 1e-9 * sums).all(axis=1) & (nearest > 0).all(axis=1)
    if fits.any():
        return tuple(int(number) for number in nearest[int(fits.argmax())])
    # Largest remainder, at least one each.
    numbers = np.maximum(np.floor(parts * LONGEST_WINDOW), 1).astype(int)
    for slot in np.argsort(numbers - parts * LONGEST_WINDOW)[: max(LONGEST_WINDOW - int(numbers.sum()), 0)]:
        numbers[slot] += 1
    divisor = math.gcd(*(int(number) for number in numbers))
    return tuple(int(number) // divisor for number in numbers)
