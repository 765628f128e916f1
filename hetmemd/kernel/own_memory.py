"""A mapping of the caller's own, on nodes of its choice: mbind(2) in this very process."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

from hetmemd.kernel import libc
from hetmemd.kernel.mempolicy import Mempolicy, nodemask


def mapped(size: int, policy: Mempolicy) -> mmap.mmap:
    """Untouched private memory of `size` bytes that will come as `policy` says. `OSError` from mmap(2) or mbind(2).

    Huge pages where the kernel has them free: what is measured is the memory, not the TLB.
    """
    found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # of a kernel without transparent huge pages
        found.madvise(mmap.MADV_HUGEPAGE)
    view = ctypes.c_char.from_buffer(found)
    try:
        mask, maxnode = nodemask(policy.nodes)
        libc.syscall(
            libc.MBIND,
            ctypes.c_void_p(ctypes.addressof(view)),
            ctypes.c_size_t(size),
            ctypes.c_int(policy.mode_argument),
            mask,
            ctypes.c_ulong(maxnode),
            ctypes.c_uint(0),
        )
    finally:
        del view
    return found
