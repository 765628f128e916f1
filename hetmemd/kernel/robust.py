"""get_robust_list(2): where a thread keeps its list of locks, which is in its control block.

glibc registers the list for every thread that it makes (nptl/pthread_create.c), at a fixed place in `struct pthread`,
and puts that at the top of the thread's stack: so the address tells the stack of a thread that runs, too, without
stopping it. musl registers it with the first robust lock, other runtimes never.
"""

from __future__ import annotations

import ctypes
import errno

from hetmemd.kernel import libc


def list_head(tid: int) -> int | None:
    """The address, None where none is registered. `OSError`: ESRCH gone, EPERM no right (PTRACE_MODE_READ)."""
    head, length = ctypes.c_ulong(), ctypes.c_size_t()
    try:
        libc.syscall(libc.GET_ROBUST_LIST, ctypes.c_int(tid), ctypes.byref(head), ctypes.byref(length))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return None
        raise OSError(error.errno, error.strerror, f"/proc/{tid}") from None
    return head.value or None
