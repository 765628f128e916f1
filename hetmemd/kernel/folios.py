"""Which pages belong together: /proc/kpageflags. Documentation/admin-guide/mm/pagemap.rst.

A folio of several pages that is mapped page by page (a huge page after a part of it was unmapped or protected, the
sizes between of 6.8 and later, a file's) looks like small pages in page tables; asked to move one, the kernel moves
all of it.
"""

from __future__ import annotations

import errno
import os

import numpy as np
from numpy.typing import NDArray

from hetmemd.kernel.pagemap import Pagemap, Presence, frames
from hetmemd.kernel.pages import PAGE_SIZE
from hetmemd.kernel.root import Root

# include/uapi/linux/kernel-page-flags.h
_HEAD = np.uint64(1 << 15)
_TAIL = np.uint64(1 << 16)

_GAP = 32
"""Reading so many entries too many is cheaper than another read."""


class Frames:
    """Flags of page frames, by frame number: known only with CAP_SYS_ADMIN."""

    def __init__(self, root: Root) -> None:
        """`OSError`: ENOENT without CONFIG_PROC_PAGE_MONITOR, EACCES without the right."""
        self.path = root.name("/proc/kpageflags")
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def flags(self, wanted: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Of each frame; 0 for one beyond the end of memory."""
        if not len(wanted):
            return np.zeros(0, dtype=np.uint64)
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]
        cuts = np.flatnonzero(np.diff(ascending) > _GAP) + 1
        found = np.zeros(len(wanted), dtype=np.uint64)
        for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(wanted)], strict=True):
            piece = ascending[first:last]
            start = int(piece[0])
            entries = self._entries(start, int(piece[-1]) + 1 - start)
            there = piece - start < len(entries)
            found[order[first:last][there]] = entries[piece[there] - start]
        return found

    def _entries(self, start: int, count: int) -> NDArray[np.uint64]:
        try:
            return np.frombuffer(os.pread(self._fd, count * 8, start * 8), dtype=np.uint64)
        except OSError as error:
            if error.errno == errno.EINVAL:  # the end of memory
                return np.zeros(0, dtype=np.uint64)
            raise OSError(error.errno, error.strerror, self.path) from None


def frames_of(pagemap: Pagemap, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
    """The frame of each page, ascending addresses; 0 where it is gone meanwhile, or not shown."""
    found = np.zeros(len(addresses), dtype=np.int64)
    cuts = (np.flatnonzero(np.diff(addresses) > _GAP * PAGE_SIZE) + 1).tolist()
    for first, last in zip([0, *cuts], [*cuts, len(addresses)], strict=True):
        start = int(addresses[first])
        piece = frames(pagemap.entries(start, int(addresses[last - 1]) + PAGE_SIZE))
        where = (addresses[first:last] - start) // PAGE_SIZE
        there = where < len(piece)
        found[first:last][there] = piece[where[there]]
    return found


def gather(pagemap: Pagemap, known: Frames, presence: Presence) -> Presence:
    """The same pages, those of one folio that stand together as one entry."""
    addresses, sizes = presence.addresses, presence.sizes
    neighbours = np.zeros(len(addresses) + 1, dtype=bool)
    neighbours[1:-1] = (np.diff(addresses) == PAGE_SIZE) & (sizes[1:] == 1) & (sizes[:-1] == 1)
    candidates = np.flatnonzero(neighbours[1:] | neighbours[:-1])
    if not len(candidates):
        return presence
    frame = np.zeros(len(addresses), dtype=np.int64)
    frame[candidates] = frames_of(pagemap, addresses[candidates])
    # The frames of a folio are consecutive.
    neighbours[1:-1] &= (np.diff(frame) == 1) & (frame[:-1] > 0)
    candidates = np.flatnonzero(neighbours[1:] | neighbours[:-1])
    flags = np.zeros(len(addresses), dtype=np.uint64)
    flags[candidates] = known.flags(frame[candidates])
    continues = neighbours[:-1] & ((flags & _TAIL) != 0)
    continues[1:] &= (flags[:-1] & (_HEAD | _TAIL)) != 0
    if not continues.any():
        return presence
    starts = np.flatnonzero(~continues)
    return Presence(addresses[starts], np.add.reduceat(sizes, starts).astype(np.int32), presence.next)
