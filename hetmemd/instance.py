"""One at a time acts on this machine and writes the ledger: the daemon, or hetmemctl in its absence."""

from __future__ import annotations

import fcntl
import os

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
    """The pid of who holds the lock now; None where nobody does."""
    try:
        fd = os.open(root.path(LOCK), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(fd)
    return None
