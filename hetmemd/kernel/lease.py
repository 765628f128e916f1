"""Reading a file only when nobody is writing it, by a read lease: fcntl(2), "Leases".

A read lease is granted only while no descriptor anywhere is open for writing, and whoever opens for writing afterwards
waits until it is given back, here microseconds later. So what is read under one was not half-written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal


class BeingWritten(BlockingIOError):
    """Somebody has the file open for writing; inotify tells when it is closed."""


def read_settled(name: str) -> bytes:
    """The whole of a regular file, as no writer has it open. Raises `BeingWritten`, or another `OSError` with `name`.

    Where the filesystem has no leases (NFS, 9p), or the file belongs to somebody else and CAP_LEASE is missing, it is
    read as it is: then only the close that inotify tells is a sign of completeness.
    """
    # Not blocking: a FIFO of the right name must not stop the reader.
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if take(descriptor) is False:
            raise BeingWritten(errno.EAGAIN, "is open for writing", name)
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    except BeingWritten:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None
    finally:
        # Gives back the lease.
        os.close(descriptor)


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
