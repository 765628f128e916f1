"""Which task is where, now: read from cgroupfs and /proc at the moment of the question, never remembered."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from hetmemd.kernel import cgroupfs, libc, procfs
from hetmemd.kernel.root import Root
from hetmemd.tasks.tree import Cgroup


class Thread(NamedTuple):
    """One thread, by the ids of the moment: whoever keeps them adds the start time."""

    pid: int
    tid: int


def processes(root: Root, cgroup: Cgroup) -> list[int]:
    """Pids of which a thread is in this very cgroup (T1), without order; empty where the cgroup is gone.

    Zombies are not listed by the kernel, except a dead leader whose threads live, which is kept. In threaded cgroups
    cgroup.procs lists too much (the domain: its whole subtree) or nothing (EOPNOTSUPP), and the threads are looked at.
    """
    try:
        if not is_threaded(root, cgroup.path):
            try:
                return cgroupfs.procs(root, cgroup.path)
            except OSError as error:
                # It became threaded since it was asked.
                if error.errno != errno.EOPNOTSUPP:
                    raise
    except OSError as error:
        if libc.is_gone(error):
            return []
        raise
    return list({thread.pid for thread in threads(root, cgroup)})


def threads(root: Root, cgroup: Cgroup) -> list[Thread]:
    """The live threads that are in this very cgroup, whatever its type; empty where the cgroup is gone."""
    found = []
    try:
        tids = cgroupfs.threads(root, cgroup.path)
    except OSError as error:
        if libc.is_gone(error):
            return []
        raise
    for tid in tids:
        try:
            found.append(Thread(_leader(root, tid), tid))
        except OSError as error:
            if not libc.is_gone(error):
                raise
    return found


def _leader(root: Root, tid: int) -> int:
    """The thread group of a thread: /proc/TID answers for every thread, though it lists only leaders."""
    data = root.read_bytes(f"/proc/{tid}/status")
    start = data.index(b"\nTgid:") + 6
    return int(data[start : data.index(b"\n", start)])


def elsewhere(root: Root, pid: int, path: str) -> dict[int, str]:
    """Threads of a process that are in another cgroup than its own, `path`, with theirs (T1): mostly none can be."""
    tids = procfs.tids(root, pid)
    if len(tids) == 1 or not is_threaded(root, path):
        return {}
    found: dict[int, str] = {}
    for tid in tids:
        try:
            other = procfs.cgroup_path(root, pid, tid)
        except OSError as error:
            if not libc.is_gone(error):
                raise
            continue
        if other is not None and other != path:
            found[tid] = other
    return found


def is_threaded(root: Root, path: str) -> bool:
    """Whether the threads of one process may be in different cgroups there. False where that cannot be read."""
    if path != "/":
        return "threaded" in _kind(root, path)
    try:
        # The root serves threaded children as their domain without saying so.
        with os.scandir(cgroupfs.directory(root, "/")) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return False
    return any(_kind(root, f"/{name}") == "threaded" for name in names)


def _kind(root: Root, path: str) -> str:
    try:
        return cgroupfs.kind(root, path)
    except OSError:
        return ""
