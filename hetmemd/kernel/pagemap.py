"""/proc/PID/pagemap: which pages are there. Documentation/admin-guide/mm/pagemap.rst, include/uapi/linux/fs.h.

The ioctl PAGEMAP_SCAN (6.7) walks the page tables and gives ranges, at 2.8 ms for 1 GiB of 4 KiB pages and 5 ms for
64 GiB of address space with little in it; before, an entry of 8 bytes is read for every page of address space.
Neither shows anything of VM_PFNMAP regions (device memory): the walk leaves them out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hetmemd.kernel.features import PAGEMAP_SCAN
from hetmemd.kernel.pages import PAGE_SHIFT, PAGE_SIZE, Addresses
from hetmemd.kernel.root import Root

# include/uapi/linux/fs.h
_SCAN_ARGUMENT = struct.Struct("=12Q")  # struct pm_scan_arg
_PAGE_IS_PRESENT = 1 << 3
_PAGE_IS_PFNZERO = 1 << 5
_PAGE_IS_HUGE = 1 << 6

# Entries of pagemap.
_PRESENT = np.uint64(1 << 63)
_FRAME = np.uint64((1 << 55) - 1)

HUGE = 2 << 20
"""Bytes of a transparent huge page mapped whole (x86-64, arm64 with 4 KiB pages)."""
HUGE_PAGES = HUGE // PAGE_SIZE

_RANGES = 2048
"""Ranges asked for at once: 48 KiB."""
_PIECE = 1 << 26
"""Bytes of address space whose pagemap entries are read at once, without the ioctl."""


class Presence(NamedTuple):
    """What is there between two addresses."""

    addresses: Addresses
    """Of each folio's first page, ascending."""
    sizes: NDArray[np.int32]
    """Pages of 4 KiB of each, mapped or not: 512 for one that is mapped as a huge page, or else 1 (`folios.gather`)."""
    next: int
    """Where to go on: everything below it was seen."""


class Pagemap:
    """An open pagemap: close it soon, it keeps the address space alive that it was opened for."""

    def __init__(self, root: Root, pid: int, tid: int | None = None) -> None:
        """`OSError`: ENOENT or ESRCH gone, EACCES no right (PTRACE_MODE_READ)."""
        path = f"/proc/{pid}/pagemap" if tid is None else f"/proc/{pid}/task/{tid}/pagemap"
        self.path = root.name(path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._ranges = np.zeros((_RANGES, 3), dtype=np.uint64)
        self.can_scan = True

    def __enter__(self) -> Pagemap:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def present(self, start: int, end: int, most: int) -> Presence:
        """Folios of `start` to `end`, about `most` pages of them (1024 at least).

        Pages in swap, zero pages and what was never touched are left out, and huge pages that are not wholly within.
        """
        if self.can_scan:
            try:
                return self._scan(start, end, max(most, 2 * HUGE_PAGES))
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
                self.can_scan = False  # before 6.7
        return self._read(start, end, max(most, 2 * HUGE_PAGES))

    def _scan(self, start: int, end: int, most: int) -> Presence:
        argument = bytearray(
            _SCAN_ARGUMENT.pack(
                _SCAN_ARGUMENT.size,
                0,
                start,
                end,
                0,
                self._ranges.ctypes.data,
                _RANGES,
                most,
                _PAGE_IS_PFNZERO,  # inverted: asked to be clear
                _PAGE_IS_PRESENT | _PAGE_IS_PFNZERO,
                0,
                _PAGE_IS_HUGE,
            )
        )
        try:
            count = fcntl.ioctl(self._fd, PAGEMAP_SCAN, argument, True)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from None
        ranges = self._ranges[:count].astype(np.int64)
        walked = int(_SCAN_ARGUMENT.unpack(argument)[4])
        if count == 0:
            return _nothing(walked if walked > start else end)
        rest = walked % HUGE
        if rest and walked < end:
            # The limit was reached within a huge page, or within a folio that is mapped page by page: cut before it.
            walked -= rest
            ranges = ranges[ranges[:, 0] < walked]
            ranges[:, 1] = np.minimum(ranges[:, 1], walked)
        if walked <= start:
            return _nothing(min(start - start % HUGE + HUGE, end))
        huge = (ranges[:, 2] & _PAGE_IS_HUGE) != 0
        steps = np.where(huge, HUGE, PAGE_SIZE)
        # A huge page that lies across the first or the last address is not of this range.
        begins = -(-ranges[:, 0] // steps) * steps
        counts = np.maximum(ranges[:, 1] - begins, 0) // steps
        first = np.repeat(begins, counts)
        before = np.repeat(np.cumsum(counts) - counts, counts)
        addresses = first + (np.arange(len(first), dtype=np.int64) - before) * np.repeat(steps, counts)
        sizes = np.repeat(np.where(huge, HUGE_PAGES, 1).astype(np.int32), counts)
        return Presence(addresses, sizes, walked)

    def raw(self, page: int, count: int) -> bytes:
        """Entries of `count` pages from page number `page` on, 8 bytes each; zeros where nothing is mapped any more.

        Frame numbers in them are 0 without CAP_SYS_ADMIN.
        """
        try:
            return os.pread(self._fd, count * 8, page * 8).ljust(count * 8, b"\0")
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from None

    def _read(self, start: int, end: int, most: int) -> Presence:
        stop = start + min(most * PAGE_SIZE, _PIECE)
        stop = min(end, stop - stop % HUGE)
        entries = np.frombuffer(self.raw(start >> PAGE_SHIFT, (stop - start) >> PAGE_SHIFT), dtype=np.uint64)
        index = np.flatnonzero(entries & _PRESENT)
        return Presence(start + index * PAGE_SIZE, np.ones(len(index), dtype=np.int32), stop)


def _nothing(following: int) -> Presence:
    return Presence(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32), following)


def frames(entries: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Frame numbers of pagemap entries, 0 where nothing is there (or nothing is shown)."""
    found = (entries & _FRAME).view(np.int64)
    found[(entries & _PRESENT) == 0] = 0
    return found
