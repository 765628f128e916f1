"""How much a node may still take in without hurting anybody there.

The kernel lets a move fill a node down to its *min* watermark, where everybody's allocations stall; and huge pages that
are moved into a nearly full node are split. So moving stops earlier, above the *high* watermark and a reserve.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from hetmemd.kernel import libc, zoneinfo
from hetmemd.kernel.root import Root

RESERVE_PART = 64
"""The reserve above the high watermark is one 64th (1.6 %) of the node,"""
RESERVE_LEAST = 4096
"""and at least 16 MiB (in pages)."""
BIND_RESERVE = 16384
"""Pages (64 MiB) that must be free on the nodes of a `bind`, above what moving leaves alone, to issue it (L7): what no
node of the mask can hold ends in the kernel's OOM killer."""
KEPT = 10.0
"""Seconds for which watermarks serve: nodes grow (memory hotplug), and vm.min_free_kbytes is changed. Reading them
takes longer the more CPUs there are."""


def reserve(marks: zoneinfo.Watermarks) -> int:
    """Pages that stay free on a node."""
    return marks.high + max(marks.managed // RESERVE_PART, RESERVE_LEAST)


class Headroom:
    """Room on nodes. Watermarks are read now and then, and at once for a node that is new; free pages at each
    question. May be asked in several threads."""

    def __init__(self, root: Root, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._reserve: dict[int, int] = {}
        self._until = 0.0

    def bears(self, nodes: Iterable[int]) -> bool:
        """Whether a `bind` that comes to these nodes leaves its programs something to spare (L7)."""
        return sum(self.room(node) for node in nodes) >= BIND_RESERVE

    def room(self, node: int, folio: int = 1) -> int:
        """Pages that may be moved there now, in folios of up to `folio` pages.

        Counted are free pages and, for small pages, half of the clean file cache that was not used lately: on a machine
        that ran for a while it fills every node, and the kernel gives it up for any allocation. A larger folio needs a
        free block that it fits into: where there is none, the kernel splits it. 0 where the node has no memory or is
        gone.
        """
        now, kept = self._clock(), self._reserve
        if node not in kept or now >= self._until:
            kept = {each: reserve(marks) for each, marks in zoneinfo.watermarks(self._root).items()}
            self._reserve, self._until = kept, now + KEPT
            if node not in kept:
                return 0
        try:
            counts = zoneinfo.node_vmstat(self._root, node)
        except OSError as error:
            if libc.is_gone(error):
                return 0
            raise
        free = counts.get("nr_free_pages", 0)
        if folio == 1:
            dirty = counts.get("nr_dirty", 0) + counts.get("nr_writeback", 0)
            free += max(counts.get("nr_inactive_file", 0) - dirty, 0) // 2
            return max(free - kept[node], 0)
        order = (folio - 1).bit_length()
        blocks = zoneinfo.free_blocks(self._root, node)
        fitting = sum(count << (at - order) for at, count in enumerate(blocks) if at >= order)
        return max(min(free - kept[node], fitting * folio), 0)
