"""What the running kernel takes of memory policies, found by asking it: its version says nothing of backports.

mbind(2) on a page of the caller's own checks mode and flags as set_mempolicy(2) does (sanitize_mpol_flags() in
mm/mempolicy.c), and concerns nobody.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from dataclasses import dataclass
from functools import lru_cache

from hetmemd.kernel import libc, procfs
from hetmemd.kernel.mempolicy import NO_FLAGS, Flag, Mempolicy, Mode, nodemask
from hetmemd.kernel.root import Root

PAGEMAP_SCAN = 0xC0606610
"""_IOWR('f', 16, struct pm_scan_arg), include/uapi/linux/fs.h."""

_BALANCED = (Mode.BIND, Mode.PREFERRED_MANY)


@dataclass(frozen=True, slots=True)
class Features:
    """Only what was refused as unknown is missing: where asking was not possible nothing is."""

    modes: frozenset[Mode] = frozenset(Mode)
    balancing: frozenset[Mode] = frozenset(_BALANCED)
    """Modes that MPOL_F_NUMA_BALANCING goes with: bind (5.12), preferred-many (6.9)."""
    home_node: bool = True
    """set_mempolicy_home_node(2) (5.17)."""
    scans_pagemap: bool = True
    """The ioctl PAGEMAP_SCAN (6.7)."""


ALL = Features()


@lru_cache(maxsize=1)
def probe() -> Features:
    """Of this kernel, on a scratch page of this process. Asked once: a kernel does not change while it runs."""
    if not libc.MOVES:
        return ALL
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = ctypes.c_char.from_buffer(page)
    address = ctypes.addressof(view)
    try:
        root = Root()
        # One that the process may use: its cpuset cuts the mask, and what is left must not be nothing.
        nodes = frozenset(sorted(procfs.mems_allowed(procfs.status(root, os.getpid())))[:1])
        modes = frozenset(mode for mode in Mode if _takes(address, _of(mode, nodes)))
        balancing = frozenset(mode for mode in _BALANCED if _takes(address, _of(mode, nodes, Flag.NUMA_BALANCING)))
        _takes(address, _of(Mode.BIND, nodes))
        home_node = _takes_home_node(address, min(nodes, default=0))
        return Features(modes, balancing, home_node, _scans_pagemap())
    except OSError:
        return ALL
    finally:
        del view
        page.close()


def _of(mode: Mode, nodes: frozenset[int], flags: Flag = NO_FLAGS) -> Mempolicy:
    return Mempolicy(mode, nodes if mode.takes_nodes else frozenset(), flags)


def _takes(address: int, policy: Mempolicy) -> bool:
    """Whether mbind(2) knows the mode with these flags; the page has that policy then."""
    mask, maxnode = nodemask(policy.nodes) if policy.nodes else (None, 0)
    try:
        libc.syscall(
            libc.MBIND,
            ctypes.c_void_p(address),
            ctypes.c_size_t(mmap.PAGESIZE),
            ctypes.c_int(policy.mode_argument),
            mask,
            ctypes.c_ulong(maxnode),
            ctypes.c_uint(0),
        )
    except OSError as error:
        return error.errno not in (errno.EINVAL, errno.ENOSYS)
    return True


def _takes_home_node(address: int, node: int) -> bool:
    """For the page, which is bound by now."""
    try:
        libc.syscall(
            libc.SET_MEMPOLICY_HOME_NODE,
            ctypes.c_ulong(address),
            ctypes.c_ulong(mmap.PAGESIZE),
            ctypes.c_ulong(node),
            ctypes.c_ulong(0),
        )
    except OSError as error:
        return error.errno not in (errno.EINVAL, errno.ENOSYS)
    return True


def _scans_pagemap() -> bool:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # An argument of size 0, which the ioctl refuses with EINVAL: it is known, and does nothing.
        fcntl.ioctl(fd, PAGEMAP_SCAN, bytes(96))
    except OSError as error:
        return error.errno != errno.ENOTTY
    finally:
        os.close(fd)
    return True
