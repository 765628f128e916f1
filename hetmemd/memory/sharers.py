"""Which pages may be moved for all who map them: those whose every mapping is in a process that agreed to it.

A page that a child shares after a fork, of shared memory or of a file is mapped several times. The kernel says how
often (/proc/kpagecount), and the page tables of the processes that agree say where they map it: where these are as
many, there is nobody else. Pages that KSM merged lie at addresses that have nothing to do with each other, and are so
never found.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from hetmemd.kernel import folios, libc, maps
from hetmemd.kernel.maps import Mapping
from hetmemd.kernel.pagemap import Pagemap
from hetmemd.kernel.pages import PAGE_SIZE, Addresses
from hetmemd.kernel.root import Root

KEPT = 5.0
"""Seconds for which the mappings of a process that were read serve again."""


class Sharers:
    """The processes that agree: those of one placement, all of whose cgroups say `shared = "move"`."""

    def __init__(self, root: Root, others: Collection[int]) -> None:
        """`others`: the pids of those besides the one whose pages are at issue."""
        self._root = root
        self._others = others
        self._maps: dict[int, list[Mapping]] = {}
        self._read_at = 0.0

    def agree(self, tid: int, addresses: Addresses, sizes: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Of each folio of the process that thread `tid` belongs to, ascending: all of its pages are mapped by
        processes that agree, and by no other. None is where frames are not shown (CAP_SYS_ADMIN)."""
        # A folio of which little is mapped is larger than what lies between it and the next.
        spans = np.minimum(sizes, np.diff(addresses, append=np.int64(1) << 62) // PAGE_SIZE)
        folio = np.repeat(np.arange(len(addresses)), spans)
        within = np.arange(len(folio)) - np.repeat(np.cumsum(spans) - spans, spans)
        places = addresses[folio] + within * PAGE_SIZE
        with contextlib.ExitStack() as stack:
            try:
                counts = folios.Frames(self._root, folios.COUNTS)
            except OSError:
                return np.zeros(len(addresses), dtype=bool)
            stack.callback(counts.close)
            own = stack.enter_context(Pagemap(self._root, tid))
            frames = folios.frames_of(own, places)
            mapped = counts.values(frames).astype(np.int64)
            is_ours_alone = _has_no_part_elsewhere(counts, frames, np.cumsum(spans) - spans, sizes)
        found = np.zeros(len(places), dtype=np.int64)
        mappings = self._mappings(tid)
        for pid in (tid, *self._others):
            found += self._mapped_by(pid, mappings, places, frames)
        agreed = (frames > 0) & (found >= mapped)
        agreed |= frames == 0  # a hole of the folio, looked at above
        result: NDArray[np.bool_] = np.bincount(folio, weights=agreed, minlength=len(addresses)) == spans
        result &= np.bincount(folio, weights=frames > 0, minlength=len(addresses)) > 0
        result &= is_ours_alone
        return result

    def _mapped_by(
        self, pid: int, mappings: list[Mapping], places: Addresses, frames: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """How often process `pid` maps each frame: at the same address, or at the same place of the same file."""
        found = np.zeros(len(places), dtype=np.int64)
        try:
            theirs = self._mappings(pid)
            with Pagemap(self._root, pid) as pagemap:
                for ours in mappings:
                    low, high = np.searchsorted(places, [ours.start, ours.end])
                    if low == high:
                        continue
                    part = slice(int(low), int(high))
                    for other in theirs:
                        shift = _shift(ours, other)
                        if shift is None:
                            continue
                        there = places[part] + shift
                        inside = (there >= other.start) & (there < other.end)
                        if inside.any():
                            same = folios.frames_of(pagemap, there[inside]) == frames[part][inside]
                            found[part][inside] += same
        except OSError as error:
            if not libc.is_gone(error):
                raise
        return found

    def _mappings(self, pid: int) -> list[Mapping]:
        now = time.monotonic()
        if now - self._read_at > KEPT:
            self._maps.clear()
            self._read_at = now
        if pid not in self._maps:
            self._maps[pid] = maps.read(self._root, pid)
        return self._maps[pid]


def _has_no_part_elsewhere(
    counts: folios.Frames, frames: NDArray[np.int64], begins: NDArray[np.int64], sizes: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Of each folio, the frames of whose pages that are mapped here begin at these places: no other page of it is
    mapped by anybody. It would move as well, and where it is mapped is not known. A folio is aligned to its size."""
    result = np.ones(len(sizes), dtype=bool)
    first = frames[begins]
    for each in np.flatnonzero((sizes > 1) & (first > 0)).tolist():
        size = int(sizes[each])
        head = int(first[each]) // size * size
        others = np.setdiff1d(np.arange(head, head + size), frames)
        result[each] = not counts.values(others).any()
    return result


def _shift(ours: Mapping, other: Mapping) -> int | None:
    """What to add to an address of one mapping for the same place in the other; None where they have none in common."""
    if ours.inode or other.inode:
        same = (ours.device, ours.inode) == (other.device, other.inode)
        return (other.start - other.offset) - (ours.start - ours.offset) if same else None
    # Anonymous: shared since a fork, at the same address.
    return 0 if other.start < ours.end and ours.start < other.end else None
