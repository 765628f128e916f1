"""One at a time acts on this machine and writes the ledger: the daemon, or hetmemctl in its absence."""

from __future__ import annotations

import contextlib
import fcntl
import os

from hetmemd.kernel import libc
from hetmemd.kernel.root import Root

LOCK = "/run/hetmemd/lock"


class Taken(Exception):
    """Another one holds the lock; `holder` is its pid, as it wrote it, or `unknown`."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"hetmemd runs already, as process {holder}")
        self.holder = holder


def lock(root: Root) -> int:
    """The open lock, held until it is closed or the process ends. `Taken`, `OSError`."""
    path = root.path(LOCK)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise Taken(holder or "unknown") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def holder(root: Root) -> int | None:
    """The pid of who holds the lock, None where nobody does. It is not tried: a daemon that starts in that moment would
    find it taken. `OSError` without the right to look."""
    try:
        text = root.read_bytes(LOCK).strip()
        lock = root.path(LOCK).stat()
        descriptors = os.listdir(root.name(f"/proc/{int(text)}/fd")) if text.isdigit() else []  # noqa: PTH208
    except OSError as error:
        if libc.is_gone(error):
            return None
        raise
    for descriptor in descriptors:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(root.name(f"/proc/{int(text)}/fd/{descriptor}"))  # noqa: PTH116
            if (found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino):
                return int(text)
    return None
