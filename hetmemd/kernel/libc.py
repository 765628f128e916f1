"""The one door to raw syscalls: `syscall(2)` by ctypes, with errno turned into `OSError`. x86-64 numbers only."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

SUPPORTED = platform.machine() == "x86_64"
"""Numbers below are those of arch/x86/entry/syscalls/syscall_64.tbl."""

MBIND = 237
MOVE_PAGES = 279
GET_ROBUST_LIST = 274
KCMP = 312
SET_MEMPOLICY_HOME_NODE = 450


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
