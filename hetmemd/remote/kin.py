"""Whether a process's memory is its own (T5): a vfork or CLONE_VM child runs in the memory of another process."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hetmemd.kernel import kcmp, libc, procfs
from hetmemd.kernel.root import Root


def shares_memory(root: Root, pid: int, tid: int) -> bool:
    """True where the parent, a child or a sibling runs in the address space of thread `tid` (alive) of process `pid`.

    `OSError` where the kernel does not say (no CONFIG_KCMP, no right).
    """
    parent = procfs.stat(root, pid).ppid
    kin = _children(root, procfs.tids(root, pid))
    if parent:
        theirs = procfs.tids(root, parent)
        # A dead leader has no memory to compare, its threads have.
        kin |= {theirs[0], theirs[-1]} | _children(root, theirs)
    kin.discard(pid)
    return any(_same(tid, other) for other in kin)


def _children(root: Root, tids: Iterable[int]) -> set[int]:
    children: set[int] = set()
    for tid in tids:
        try:
            # /proc/TID leads to every thread, though only leaders are listed.
            children.update(map(int, root.read_bytes(f"/proc/{tid}/task/{tid}/children").split()))
        except OSError as error:
            if not libc.is_gone(error):
                raise
            if not os.path.exists(root.name("/proc/self/task")) or _has_no_children_files(root):  # noqa: PTH110
                return _all_processes(root)
    return children


def _has_no_children_files(root: Root) -> bool:
    """A kernel without CONFIG_PROC_CHILDREN."""
    return not os.path.exists(root.name(f"/proc/self/task/{os.getpid()}/children"))  # noqa: PTH110


def _all_processes(root: Root) -> set[int]:
    return {int(name) for name in os.listdir(root.name("/proc")) if name.isdigit()}  # noqa: PTH208


def _same(tid: int, other: int) -> bool:
    try:
        return kcmp.same_address_space(tid, other)
    except OSError as error:
        if libc.is_gone(error):
            return False
        raise
