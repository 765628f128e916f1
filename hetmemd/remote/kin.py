"""Whether a process's memory is its own (T5): a vfork or CLONE_VM child runs in the memory of another process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hetmemd.kernel import kcmp, libc, procfs
from hetmemd.kernel.heads import Heads
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


_AT_ONCE = 32
_SIZE = 1024
_heads = Heads([_SIZE] * _AT_ONCE)


def _children(root: Root, tids: Sequence[int]) -> set[int]:
    children: set[int] = set()
    directory = os.open(root.name("/proc"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for start in range(0, len(tids), _AT_ONCE):
            some = tids[start : start + _AT_ONCE]
            # /proc/TID leads to every thread, though only leaders are listed.
            for tid, head in zip(some, _heads.read(directory, [_name(tid) for tid in some]), strict=True):
                if isinstance(head, int):
                    if not libc.is_gone(OSError(head, "")):
                        raise OSError(head, os.strerror(head), f"/proc/{tid}")
                    if _has_no_children_files(root):
                        return _all_processes(root)
                elif head:
                    whole = head if len(head) < _SIZE else root.read_bytes("/proc/" + _name(tid).decode())
                    children.update(map(int, whole.split()))
    finally:
        os.close(directory)
    return children


def _name(tid: int) -> bytes:
    return b"%d/task/%d/children" % (tid, tid)


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
