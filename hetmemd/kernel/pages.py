"""move_pages(2): on which node pages are, and moving them. Arrays are numpy's, addresses int64.

Statuses of a page (mm/migrate.c): a node, or a negative errno: -ENOENT never touched, -EFAULT zero page or unmapped,
-EACCES mapped by others too, -EBUSY pinned, under I/O, or part of a folio that the same call moves already.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hetmemd.kernel import libc

PAGE_SIZE = os.sysconf("SC_PAGESIZE")
PAGE_SHIFT = PAGE_SIZE.bit_length() - 1

MPOL_MF_MOVE = 1 << 1
"""Move pages that this process alone maps (include/uapi/linux/mempolicy.h)."""
MPOL_MF_MOVE_ALL = 1 << 2
"""Move pages whoever maps them: CAP_SYS_NICE."""

UNWRITTEN = -(1 << 30)
"""What a status holds before the call: the kernel leaves it alone where it did not come to the page."""

Addresses = NDArray[np.int64]
Statuses = NDArray[np.int32]


class MoveCall(NamedTuple):
    """What one call said. None of it is proof of where pages are now: `query` is."""

    result: int
    """0; or how many pages were not moved, where the kernel stopped at them and wrote no status from there on; or the
    negative errno of the call: also then pages may have moved."""
    statuses: Statuses
    """`UNWRITTEN` where the kernel did not come to it."""


def _pointer(array: Addresses | Statuses) -> ctypes.c_void_p:
    # A strided view passed by its data pointer makes the kernel read the addresses in between.
    if not array.flags.c_contiguous:
        raise ValueError("the array is not contiguous")
    return ctypes.c_void_p(array.ctypes.data)


def query(tid: int, addresses: Addresses) -> Statuses:
    """The node of each page of the process that thread `tid` belongs to, or a negative errno.

    `OSError`: ESRCH gone, EINVAL without memory (kernel thread, zombie), EPERM no right (CAP_SYS_PTRACE or same user).
    """
    wanted = np.ascontiguousarray(addresses, dtype=np.int64)
    statuses = np.full(len(wanted), UNWRITTEN, dtype=np.int32)
    if len(wanted):
        libc.syscall(
            libc.MOVE_PAGES,
            ctypes.c_int(tid),
            ctypes.c_ulong(len(wanted)),
            _pointer(wanted),
            ctypes.c_void_p(None),
            _pointer(statuses),
            ctypes.c_int(0),
            about=f"move_pages of task {tid}",
        )
    return statuses


def move(tid: int, addresses: Addresses, destination: int, flags: int = MPOL_MF_MOVE) -> MoveCall:
    """Move pages to one node: at every change of destination in a call the kernel would start anew.

    `OSError` where the task cannot be reached at all: ESRCH, EINVAL, EPERM as for `query`.
    """
    wanted = np.ascontiguousarray(addresses, dtype=np.int64)
    statuses = np.full(len(wanted), UNWRITTEN, dtype=np.int32)
    if not len(wanted):
        return MoveCall(0, statuses)
    nodes = np.full(len(wanted), destination, dtype=np.int32)
    try:
        result = libc.syscall(
            libc.MOVE_PAGES,
            ctypes.c_int(tid),
            ctypes.c_ulong(len(wanted)),
            _pointer(wanted),
            _pointer(nodes),
            _pointer(statuses),
            ctypes.c_int(flags),
            about=f"move_pages of task {tid}",
        )
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.EPERM, None):
            raise
        result = -error.errno
    return MoveCall(result, statuses)
