"""Reading a file only when nobody is writing it, by a read lease: fcntl(2), "Leases".

A read lease is granted only while no descriptor anywhere is open for writing, and whoever opens for writing afterwards
waits until it is given back, here microseconds later. So what is read under one was not half-written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal


def being_written(name: str) -> bool | None:
    """Whether somebody has the file open for writing; None where that cannot be told."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        leased = take(descriptor)
        return None if leased is None else not leased
    finally:
        os.close(descriptor)


def take(descriptor: int) -> bool | None:
    """A read lease for as long as the descriptor is open: False where somebody has the file open for writing.

    None where there are no leases: a filesystem without them, no regular file, or another's without CAP_LEASE.
    """
    try:
        # A writer who comes now breaks the lease, of which the kernel tells by SIGIO: that would end the process.
        # SIGURG does nothing unless somebody asks for it.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    return True
