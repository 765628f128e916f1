"""The one door to raw syscalls: `syscall(2)` by ctypes, with errno turned into `OSError`."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class Numbers(NamedTuple):
    """Of the syscalls that glibc has no function for."""

    mbind: int
    move_pages: int
    get_robust_list: int
    kcmp: int
    set_mempolicy_home_node: int
    perf_event_open: int


NUMBERS: Mapping[str, Numbers] = {
    "x86_64": Numbers(237, 279, 274, 312, 450, 298),  # arch/x86/entry/syscalls/syscall_64.tbl
    "aarch64": Numbers(235, 239, 100, 272, 450, 241),  # include/uapi/asm-generic/unistd.h
}
"""By `uname -m`."""
_NONE = Numbers(*[-1] * len(Numbers._fields))
"""The kernel answers ENOSYS."""


def numbers(machine: str, page_size: int) -> Numbers | None:
    """Those that may be used.

    None also where pages are not of 4 KiB (aarch64 has kernels with 16 and 64): whoever reckons with what numa_maps
    counts takes them for these.
    """
    return NUMBERS.get(machine) if page_size == 4096 else None


_MACHINE = platform.machine()
_FOUND = numbers(_MACHINE, os.sysconf("SC_PAGESIZE"))
SUPPORTED = _MACHINE == "x86_64"
"""Whether calls can be made in other tasks (`remote.x86_64`)."""
MOVES = _FOUND is not None
"""Whether pages can be found and moved."""

MBIND, MOVE_PAGES, GET_ROBUST_LIST, KCMP, SET_MEMPOLICY_HOME_NODE, PERF_EVENT_OPEN = _FOUND or _NONE


def syscall(number: int, *arguments: Any, about: str | None = None) -> int:
    """The syscall's result; `OSError` with `about` (a path, a task) where it is negative. Lets go of the GIL."""
    result = int(_syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), about)
    return result


def is_gone(error: OSError) -> bool:
    """True where the error only means that the task, cgroup or file does not exist any more."""
    return error.errno in (errno.ENOENT, errno.ESRCH, errno.ENODEV)
