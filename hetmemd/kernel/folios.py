"""Which pages belong together, and how often each is mapped: /proc/kpageflags and /proc/kpagecount.

Documentation/admin-guide/mm/pagemap.rst.

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
from hetmemd.kernel.pages import PAGE_SHIFT
from hetmemd.kernel.root import Root

# include/uapi/linux/kernel-page-flags.h
_HEAD = np.uint64(1 << 15)
_TAIL = np.uint64(1 << 16)

_LARGEST_ORDER = 11  # of the page cache; anonymous folios end at 9
_SAMPLES, _RUN = 32, 32
"""Runs that are looked at first, and pages of each. Where one page in ten is part of a larger folio, that is noticed
in 29 of 30 chunks; where one in five is, practically always."""
_GAP = 32
"""Reading so many entries too many is cheaper than another read."""


FLAGS = "/proc/kpageflags"
COUNTS = "/proc/kpagecount"


class Frames:
    """A value for each page frame, by frame number: its flags, or how often it is mapped. Only with CAP_SYS_ADMIN."""

    def __init__(self, root: Root, path: str = FLAGS) -> None:
        """`OSError`: ENOENT without CONFIG_PROC_PAGE_MONITOR, EACCES without the right."""
        self.path = root.name(path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def values(self, wanted: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Of each frame; 0 for one beyond the end of memory."""
        if not len(wanted):
            return np.zeros(0, dtype=np.uint64)
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]
        begins = np.concatenate([[0], np.flatnonzero(np.diff(ascending) > _GAP) + 1])
        ends = np.concatenate([begins[1:], [len(wanted)]])
        starts = ascending[begins]
        lengths = ascending[ends - 1] - starts + 1
        pieces = [self._entries(start, count) for start, count in zip(starts.tolist(), lengths.tolist(), strict=True)]
        entries = np.frombuffer(b"".join(pieces), dtype=np.uint64)
        before = np.repeat(np.cumsum(lengths) - lengths - starts, ends - begins)
        found = np.empty(len(wanted), dtype=np.uint64)
        found[order] = entries[ascending + before]
        return found

    def _entries(self, start: int, count: int) -> bytes:
        try:
            return os.pread(self._fd, count * 8, start * 8).ljust(count * 8, b"\0")
        except OSError as error:
            if error.errno == errno.EINVAL:  # the end of memory
                return bytes(count * 8)
            raise OSError(error.errno, error.strerror, self.path) from None


def frames_of(pagemap: Pagemap, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
    """The frame of each page, ascending addresses; 0 where it is gone meanwhile, or not shown."""
    if not len(addresses):
        return np.zeros(0, dtype=np.int64)
    page = addresses >> PAGE_SHIFT
    begins = np.concatenate([[0], np.flatnonzero(np.diff(page) > _GAP) + 1])
    ends = np.concatenate([begins[1:], [len(page)]])
    starts = page[begins]
    lengths = page[ends - 1] - starts + 1
    pieces = [pagemap.raw(start, count) for start, count in zip(starts.tolist(), lengths.tolist(), strict=True)]
    entries = np.frombuffer(b"".join(pieces), dtype=np.uint64)
    return frames(entries[page + np.repeat(np.cumsum(lengths) - lengths - starts, ends - begins)])


def gather(pagemap: Pagemap, known: Frames, presence: Presence) -> Presence:
    """The same pages, those of one folio as one entry, at the address of the first that is mapped, and of the size of
    the folio: that is what the kernel moves, and has to find room for, however little of it is mapped. (From 6.10 on it
    splits an anonymous one of which a part was unmapped, and moves less.)

    A folio keeps the order of its pages, with holes where some were unmapped: only frames that lie to each other as
    the addresses do can belong together. Small pages often lie so as well, in short runs, and looking at all of them
    would cost more than all the rest: samples say whether there is anything to be found (`_any_large`), and whether
    there are pages without neighbours that are all that is left of a folio.
    """
    small = np.flatnonzero(presence.sizes == 1)
    if not len(small):
        return presence
    any_together, any_alone = _any_large(pagemap, known, presence.addresses[small])
    if not (any_together or any_alone):
        return presence
    frame, candidates = _candidates(pagemap, presence.addresses[small])
    if any_alone:
        candidates = np.flatnonzero(frame > 0)
    flags = known.values(frame[candidates])
    parts = (flags & (_HEAD | _TAIL)) != 0
    if not parts.any():
        return presence
    # `part`: pages of larger folios, as places in `small`; chains of them have consecutive frames.
    part, is_tail = candidates[parts], (flags[parts] & _TAIL) != 0
    begins = np.ones(len(part), dtype=bool)
    begins[1:] = (np.diff(part) != 1) | (np.diff(frame[part]) != 1) | ~is_tail[1:]
    starts = np.flatnonzero(begins)
    heads = np.where(is_tail[starts], _heads(known, frame[part[starts]]), frame[part[starts]])
    each, first_chain, folio_of_chain = np.unique(heads, return_index=True, return_inverse=True)
    first = part[starts[first_chain]]
    upto = np.zeros(len(each), dtype=np.int64)
    np.maximum.at(upto, folio_of_chain[np.cumsum(begins) - 1], frame[part])
    sizes = presence.sizes.copy()
    sizes[small[part]] = 0
    sizes[small[first]] = _sizes(known, each, upto)
    return Presence(presence.addresses[sizes > 0], sizes[sizes > 0], presence.next)


def _candidates(pagemap: Pagemap, addresses: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(frame of each page, places of those that may belong to a folio with the page before or after)."""
    frame = frames_of(pagemap, addresses)
    page = addresses >> PAGE_SHIFT
    alike = np.zeros(len(frame) + 1, dtype=bool)
    alike[1:-1] = (np.diff(frame - page) == 0) & (np.diff(page) < HUGE_PAGES) & (frame[1:] > 0)
    return frame, np.flatnonzero(alike[1:] | alike[:-1])


def _any_large(pagemap: Pagemap, known: Frames, addresses: NDArray[np.int64]) -> tuple[bool, bool]:
    """Whether a page of a larger folio is among some runs of pages, spread evenly: of those that may belong to a folio
    with a neighbour, and of the others."""
    if len(addresses) > 2 * _SAMPLES * _RUN:
        starts = np.linspace(0, len(addresses) - _RUN, _SAMPLES).astype(np.int64)
        addresses = addresses[(starts[:, None] + np.arange(_RUN)).ravel()]
    frame, candidates = _candidates(pagemap, addresses)
    return _any_part(known, frame[candidates]), _any_part(known, np.delete(frame, candidates))


def _any_part(known: Frames, frame: NDArray[np.int64]) -> bool:
    """Whether a larger folio is among these. Each flag may cost a read of its own: about two for each run."""
    chosen = frame[:: max(len(frame) // (2 * _SAMPLES), 1)]
    return bool((known.values(chosen) & (_HEAD | _TAIL)).any())


def _sizes(known: Frames, heads: NDArray[np.int64], upto: NDArray[np.int64]) -> NDArray[np.int32]:
    """Pages of the folios that begin with the frames `heads` and have the frames `upto`: the first power of two behind
    which no tail of theirs is."""
    orders: NDArray[np.int32] = np.maximum(np.frexp(upto - heads)[1], 1)
    open_ = np.flatnonzero(orders < _LARGEST_ORDER)
    while len(open_):
        goes_on = (known.values(heads[open_] + (1 << orders[open_])) & _TAIL) != 0
        open_ = open_[goes_on]
        orders[open_] += 1
        open_ = open_[orders[open_] < _LARGEST_ORDER]
    return np.left_shift(np.int32(1), orders)


def _heads(known: Frames, tails: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first frame of each one's folio: a folio is aligned to its size, so it is the nearest aligned head."""
    heads = tails.copy()
    open_ = np.arange(len(tails))
    for order in range(1, _LARGEST_ORDER + 1):
        aligned = tails[open_] >> order << order
        found = (known.values(aligned) & _HEAD) != 0
        heads[open_[found]] = aligned[found]
        open_ = open_[~found]
        if not len(open_):
            break
    return heads
