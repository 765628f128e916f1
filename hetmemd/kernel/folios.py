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

from hetmemd.kernel.pagemap import HUGE_PAGES, Pagemap, Presence, frames
from hetmemd.kernel.pages import PAGE_SIZE
from hetmemd.kernel.root import Root

# include/uapi/linux/kernel-page-flags.h
_HEAD = np.uint64(1 << 15)
_TAIL = np.uint64(1 << 16)

_LARGEST_ORDER = 11  # of the page cache; anonymous folios end at 9
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
    """The same pages, those of one folio as one entry, at the address of the first that is mapped.

    A folio keeps the order of its pages, with holes where some were unmapped: only frames that lie to each other as
    the addresses do are looked at more closely.
    """
    small = np.flatnonzero(presence.sizes == 1)
    if len(small) < 2:
        return presence
    addresses = presence.addresses[small]
    frame = frames_of(pagemap, addresses)
    page = addresses // PAGE_SIZE
    alike = np.zeros(len(small) + 1, dtype=bool)
    alike[1:-1] = (np.diff(frame - page) == 0) & (np.diff(page) < HUGE_PAGES) & (frame[1:] > 0)
    candidates = np.flatnonzero(alike[1:] | alike[:-1])
    flags = known.flags(frame[candidates])
    parts = (flags & (_HEAD | _TAIL)) != 0
    if not parts.any():
        return presence
    # `part`: pages of larger folios, as places in `small`; chains of them have consecutive frames.
    part, is_tail = candidates[parts], (flags[parts] & _TAIL) != 0
    begins = np.ones(len(part), dtype=bool)
    begins[1:] = (np.diff(part) != 1) | (np.diff(frame[part]) != 1) | ~is_tail[1:]
    starts = np.flatnonzero(begins)
    heads = np.where(is_tail[starts], _heads(known, frame[part[starts]]), frame[part[starts]])
    _, first_chain, folio_of_chain = np.unique(heads, return_index=True, return_inverse=True)
    folio = folio_of_chain[np.cumsum(begins) - 1]
    first = part[starts[first_chain]]
    sizes = presence.sizes.copy()
    sizes[small[part]] = 0
    sizes[small[first]] = np.bincount(folio)
    return Presence(presence.addresses[sizes > 0], sizes[sizes > 0], presence.next)


def _heads(known: Frames, tails: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first frame of each one's folio: a folio is aligned to its size, so it is the nearest aligned head."""
    heads = tails.copy()
    open_ = np.arange(len(tails))
    for order in range(1, _LARGEST_ORDER + 1):
        aligned = tails[open_] >> order << order
        found = (known.flags(aligned) & _HEAD) != 0
        heads[open_[found]] = aligned[found]
        open_ = open_[~found]
        if not len(open_):
            break
    return heads
