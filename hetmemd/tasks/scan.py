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
    """Pids whose thread group leader is in this very cgroup (T1), without order; empty where the cgroup is gone.

    Zombies are not listed by the kernel, except a dead leader whose threads live, which is kept. In threaded cgroups
    cgroup.procs lists too much (the domain: its whole subtree) or nothing (EOPNOTSUPP), and the leaders are looked for.
    """
    try:
        if not _has_threaded(root, cgroup):
            try:
                return cgroupfs.procs(root, cgroup.path)
            except OSError as error:
                # It became threaded since it was asked.
                if error.errno != errno.EOPNOTSUPP:
                    raise
        found = threads(root, cgroup)
    except OSError as error:
        if libc.is_gone(error):
            return []
        raise
    leaders = {thread.pid for thread in found if thread.pid == thread.tid}
    for pid in {thread.pid for thread in found} - leaders:
        # The leader is dead, or in another cgroup than this thread of its.
        if _cgroup_of(root, pid) == cgroup.path:
            leaders.add(pid)
    return list(leaders)


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


def _cgroup_of(root: Root, pid: int) -> str | None:
    try:
        return procfs.cgroup_path(root, pid)
    except OSError as error:
        if libc.is_gone(error):
            return None
        raise


def _has_threaded(root: Root, cgroup: Cgroup) -> bool:
    if cgroup.path != "/":
        return "threaded" in cgroupfs.kind(root, cgroup.path)
    # The root serves threaded children as their domain without saying so.
    with os.scandir(cgroupfs.directory(root, "/")) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        try:
            if cgroupfs.kind(root, f"/{name}") == "threaded":
                return True
        except OSError as error:
            if not libc.is_gone(error):
                raise
    return False
