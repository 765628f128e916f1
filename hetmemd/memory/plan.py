"""Which folios go where: the fewest moves that give the ratio, everywhere. Pure.

Folios that can be moved are cut, in the order of their addresses, into **windows**: as many folios of one size as the
sum of the weights (in lowest terms). A window is right when it holds each node's weight exactly; what is missing on a
node is its deficit. The plan is the sum of the windows' deficits, and no plan that makes all windows right is shorter.
So a reader that streams through memory meets all nodes in every window, not one after the other. What is guaranteed,
for folios of each size by themselves, of weights w with the sum W:

- The windows that are cut, one after the other from the lowest address on, are exact. What is left at the end, less
  than a window, has of each node its share rounded up or down, whichever is nearer to what lies there. So the whole is
  right to less than one folio.
- A window that is right is left alone, whatever the order in it: memory that the kernel interleaved itself, by any
  phase, is not touched, and a second plan after the first is empty.
- So a stretch that begins or ends within a window can be off. Of any stretch of whole windows' length (W, 2W, ...) a
  node holds its weight, off by min(w, W - w) at most; of any other, its share, off by 2w(W - w)/W at most. Less would
  take moves in windows that are right: with 25:6 these may hold their 6 all at the end, the next one at its beginning.
- Where folios have to move, there is a choice of *which*, at the same price. Those stay and come that bring the window
  nearest to one even sequence of nodes (`sequence`), the same for all windows. Memory that was all on one node so
  becomes that sequence: of it every stretch of W and more, at any offset, is off by one folio at most for two nodes,
  and by less than two for more of them or where what is left at the end is in it. Of memory that lay by chance nine in
  ten stretches are off by one folio at most, and few by more than a handful.

Memory is planned piece by piece: the folios of a window that is not complete are handed back (`Moves.rest`), to be put
before the next piece. So the plan is the same however it is cut.

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
STAYS = -1
LONGEST_WINDOW = 4096
"""Folios; weights with a larger sum are rounded to the nearest shares that fit: 0.02 % off at most."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Pages are to be in a ratio: interleave, weighted-interleave."""

    weights: tuple[tuple[int, int], ...]
    """(node, weight), ascending by node, weights positive and in lowest terms."""

    @property
    def window(self) -> int:
        """Folios: the sum of the weights."""
        return sum(weight for _, weight in self.weights)

    @property
    def shares(self) -> dict[int, float]:
        return {node: weight / self.window for node, weight in self.weights}

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
    """Which folios, ascending."""
    destination: Nodes
    """The node that each goes to."""
    rest: NDArray[np.int64]
    """Those that wait for their window to become complete, ascending: to be planned again, before the ones that follow.
    Less than a window of each size."""

    def __len__(self) -> int:
        return len(self.index)


def plan(nodes: Nodes, sizes: NDArray[np.int32] | None, target: Target, is_last: bool = True) -> Moves:
    """The moves for what is held against one target, or for a piece of it.

    `nodes`: of each folio in the order of addresses; negative for one that is not there or cannot be moved.
    `sizes`: pages of each folio, 1 and more; None where all are of one page. One entry stands for a whole folio, so
    none is split.
    `is_last`: no more follow, and incomplete windows are planned as they are.
    """
    if isinstance(target, Within):
        return _plan_within(nodes, target)
    orders = np.zeros(1, dtype=np.int32) if sizes is None or not (sizes > 1).any() else np.frexp(sizes)[1] - 1
    to = np.full(len(nodes), STAYS, dtype=np.int16)
    rest = [np.zeros(0, dtype=np.int64)]
    for order in np.unique(orders).tolist():
        chosen = np.flatnonzero((nodes >= 0) & (orders == order))
        if not is_last:
            whole = len(chosen) - len(chosen) % target.window
            rest.append(chosen[whole:])
            chosen = chosen[:whole]
        to[chosen] = _plan_ratio(nodes.take(chosen), target)
    index = np.flatnonzero(to != STAYS)
    return Moves(index, to[index], np.sort(np.concatenate(rest)))


def _plan_within(nodes: Nodes, target: Within) -> Moves:
    there = np.unique(nodes[nodes >= 0]).tolist()
    table = np.arange(max([*there, *target.nodes]) + 1, dtype=np.int16)
    for node in there:
        table[node] = target.destination(node)
    index = np.flatnonzero((nodes >= 0) & (table[nodes] != nodes))
    return Moves(index, table[nodes[index]], np.zeros(0, dtype=np.int64))


def _plan_ratio(nodes: Nodes, target: Ratio) -> Nodes:
    """Where each folio goes, or STAYS. All are of one size and can be moved."""
    if not len(nodes):
        return nodes
    names = np.array([node for node, _ in target.weights], dtype=np.int16)
    weights = tuple(weight for _, weight in target.weights)
    # From here on nodes are slots 0..m-1 in the order of the target, and m for all others.
    table = np.full(max(int(nodes.max()), int(names.max())) + 1, len(names), dtype=np.int16)
    table[names] = np.arange(len(names))
    slots = table.take(nodes)
    ideal = sequence(weights)
    whole = len(slots) - len(slots) % target.window
    # Windows are columns: numpy is slow over many short rows.
    to = np.empty(len(slots), dtype=np.int16)
    to[:whole] = _even_out(np.ascontiguousarray(slots[:whole].reshape(-1, target.window).T), ideal, weights).T.ravel()
    piece = ideal[: len(slots) - whole]
    to[whole:] = _even_out(slots[whole:, None], piece, _rounded(slots[whole:], piece, weights))[:, 0]
    goes = to != STAYS
    to[goes] = names.take(to[goes])
    return to


def _rounded(slots: Nodes, piece: Nodes, weights: Sequence[int]) -> list[int]:
    """How many of less than a window each slot should have: its share, rounded so that the fewest move, and like the
    piece of the sequence where that is all the same."""
    count, window = len(slots), sum(weights)
    held = np.bincount(slots, minlength=len(weights) + 1)[: len(weights)]
    least = np.array([count * weight // window for weight in weights])
    may_have_more = np.array([count * weight % window > 0 for weight in weights])
    in_piece = np.bincount(piece, minlength=len(weights))
    first = np.lexsort((in_piece <= least, held <= least, ~may_have_more))
    least[first[: count - int(least.sum())]] += 1
    return [int(number) for number in least]


def _even_out(slots: Nodes, ideal: Nodes, wanted: Sequence[int]) -> Nodes:
    """The slot that each goes to, or STAYS, so that `wanted` of each slot are left in every window.

    `slots` is (positions, windows), `ideal` the even sequence over the positions.
    """
    if slots.shape[1] > 1 and bool((slots == slots[:, :1]).all()):
        # All windows are alike, as in memory that one node holds: three times as fast.
        return np.repeat(_even_out(slots[:, :1], ideal, wanted), slots.shape[1], axis=1)
    held = [(slots == slot).sum(axis=0, dtype=np.int16) for slot in range(len(wanted))]
    lacking = np.flatnonzero(np.logical_or.reduce([have < want for have, want in zip(held, wanted, strict=True)]))
    if not len(lacking):
        return np.full(slots.shape, STAYS, dtype=np.int16)
    windows = slots.shape[1]
    if len(lacking) < windows:
        slots = slots.take(lacking, axis=1)
        held = [have.take(lacking) for have in held]
    # Who goes: everything on other nodes, and of each node all but what it should have.
    goes = slots == len(wanted)
    for slot, want in enumerate(wanted):
        surplus = np.flatnonzero(held[slot] > want)
        if len(surplus):
            mine = slots[:, surplus] == slot
            # Of what is left at the end, a slot may have one more than the sequence has there.
            places = np.append(np.flatnonzero(ideal == slot), len(ideal) - 1)[:want]
            goes[:, surplus] |= mine & ~_spread(mine, places)
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


def _spread(mine: NDArray[np.bool_], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """As many as `places` (ascending) of those that are true in each column, which are more: at each place the first
    one from there on that was not taken, as long as enough are left for the places that follow."""
    rank = _rank(mine)
    before = rank - mine
    turn = np.arange(len(places), dtype=np.int16)[:, None]
    taken = np.minimum(np.maximum.accumulate(before[places] - turn, axis=0), rank[-1] - len(places)) + turn
    is_taken = np.zeros((len(mine) + 1, mine.shape[1]), dtype=bool)
    np.put_along_axis(is_taken, taken.astype(np.int64), True, axis=0)
    spread: NDArray[np.bool_] = mine & np.take_along_axis(is_taken, before.astype(np.int64), axis=0)
    return spread


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
