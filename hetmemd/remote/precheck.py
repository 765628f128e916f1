"""What can be known of a process or thread without stopping it, and forbids stopping it. Each raises `Declined`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from hetmemd.kernel import cgroupfs, libc
from hetmemd.kernel.procfs import PF_EXITING, PF_KTHREAD, UNCALLABLE, State
from hetmemd.kernel.root import Root
from hetmemd.remote import kin
from hetmemd.remote.result import Outcome
from hetmemd.remote.target import Declined, Target, gone

_UNINTERRUPTIBLE_LOOKS = 5
_UNINTERRUPTIBLE_PAUSE = 0.001

PIPE_BUF = 4096
"""Writes up to this size into a pipe happen whole or not at all (pipe(7))."""
_MSG_WAITALL = 0x100
_MSG_WAITFORONE = 0x10000
_IORING_ENTER_GETEVENTS = 1


def identity(pid: int, spared: frozenset[int]) -> None:
    """Who is never touched (T5). `spared` are the daemon and the tracer."""
    if pid == 1:
        raise Declined(Outcome.REFUSED, "init")
    if pid in spared:
        raise Declined(Outcome.REFUSED, "self")


def process(root: Root, target: Target) -> None:
    """What concerns all threads alike, cheap."""
    if _read_optional(root, "/proc/sys/kernel/yama/ptrace_scope").strip() == b"3":
        # 3 forbids tracing to everybody until the next boot (Documentation/admin-guide/LSM/Yama.rst).
        raise Declined(Outcome.REFUSED, "yama")
    frozen(root, target.read(f"task/{target.living}/cgroup"))


def own_memory(root: Root, pid: int, tid: int) -> None:
    """T5, dearer. `tid` is a live thread."""
    try:
        shared = kin.shares_memory(root, pid, tid)
    except OSError as error:
        if libc.is_gone(error):
            raise gone() from None
        reason = "permission" if isinstance(error, PermissionError) else "kcmp"
        raise Declined(Outcome.REFUSED, reason, error.errno or 0) from None
    if shared:
        raise Declined(Outcome.DEFERRED, "shared-memory")


def frozen(root: Root, cgroup_file: bytes) -> None:
    """A thread in a frozen cgroup stops for a tracer, but its call waits for the thaw. v1: `thread` sees state D."""
    for line in os.fsdecode(cgroup_file).splitlines():
        path = line.removeprefix("0::")
        if path == line or path.endswith(" (deleted)") or path == "/":
            continue
        try:
            is_frozen = cgroupfs.frozen(root, path)
        except (OSError, cgroupfs.NoCgroup2, KeyError, ValueError):
            # Not mounted here, or outside of our cgroup namespace: the time limit is there for that.
            continue
        if is_frozen:
            raise Declined(Outcome.DEFERRED, "frozen")


def is_threaded(root: Root, cgroup_file: bytes) -> bool:
    """True where threads of the process may be in different cgroups."""
    for line in os.fsdecode(cgroup_file).splitlines():
        if line.startswith("0::") and line != "0::/":
            try:
                return "threaded" in cgroupfs.kind(root, line.removeprefix("0::"))
            except (OSError, cgroupfs.NoCgroup2):
                return False
    return False


def living(stat: State) -> State:
    """A thread that runs user code and has memory."""
    if stat.flags & UNCALLABLE:
        raise Declined(Outcome.UNSTEERABLE, "kernel-thread" if stat.flags & PF_KTHREAD else "io-worker")
    if stat.state in "ZXx" or stat.flags & PF_EXITING:
        raise gone()
    return stat


def thread(target: Target, tid: int, stat: State, syscall: bytes, *, is_64bit: bool) -> tuple[int, int] | None:
    """What state a living thread is in, and what it is blocked in: (syscall, pc) where it is.

    `stat` and `syscall` (the file) are of one and the same look.
    """
    looks = 0
    while stat.state == "D" and looks < _UNINTERRUPTIBLE_LOOKS:
        time.sleep(_UNINTERRUPTIBLE_PAUSE)
        looks += 1
        stat = living(target.state(tid))
        syscall = target.read(f"task/{tid}/syscall")
    if stat.state == "t":
        raise Declined(Outcome.DEFERRED, "traced")
    if stat.state == "D":
        # A vfork parent, a task frozen by cgroup v1, or one that waits for storage: it would not stop for a tracer.
        raise Declined(Outcome.DEFERRED, "uninterruptible")
    if stat.state in "SR":
        return blocked(target, syscall, is_64bit=is_64bit)
    return None


def blocked(target: Target, text: bytes, *, is_64bit: bool) -> tuple[int, int] | None:
    """(syscall, pc) of a thread's syscall file, None where it is in none.

    `short-io` where a stop would make the call return less than was asked for.
    """
    fields = text.split()
    if len(fields) < 7 or fields[0] == b"-1":  # `running`, or blocked outside of a syscall
        return None
    number = int(fields[0])
    comes_short = _comes_short_64 if is_64bit else _comes_short_32
    if comes_short(target, number, fields):
        raise Declined(Outcome.DEFERRED, "short-io")
    return number, int(fields[-1], 16)


def _argument(fields: Sequence[bytes], index: int) -> int:
    """Of the syscall, by the fields of its file."""
    return int(fields[1 + index], 16)


# sendto, sendmsg, sendmmsg, sendfile, splice, tee, vmsplice, copy_file_range, writev, pwritev, pwritev2
_SENDING_64 = frozenset({44, 46, 307, 40, 275, 276, 278, 326, 20, 296, 328})


def _comes_short_64(target: Target, number: int, fields: Sequence[bytes]) -> bool:
    if number in _SENDING_64:
        return True
    match number:
        case 1 | 18:  # write, pwrite64
            return _write_comes_short(target, fields)
        case 45:  # recvfrom
            return bool(_argument(fields, 3) & _MSG_WAITALL)
        case 47:  # recvmsg
            return bool(_argument(fields, 2) & _MSG_WAITALL)
        case 299:  # recvmmsg
            return _argument(fields, 2) > 1 and not _argument(fields, 3) & _MSG_WAITFORONE
        case 208 | 333:  # io_getevents, io_pgetevents: fewer than the least that is waited for
            return _argument(fields, 1) > 1
        case 426:  # io_uring_enter: what was submitted is the answer, and the wait is over
            return _submits_and_waits(fields)
    return False


# writev, pwritev, pwritev2, sendmsg, sendmmsg, sendto, sendfile, sendfile64, splice, tee, vmsplice, copy_file_range,
# recvmmsg with 32-bit and 64-bit time, and socketcall, whose arguments are in memory.
_UNCERTAIN_32 = frozenset({146, 334, 379, 370, 345, 369, 187, 239, 313, 315, 316, 377, 337, 417, 102})


def _comes_short_32(target: Target, number: int, fields: Sequence[bytes]) -> bool:
    if number in _UNCERTAIN_32:
        # Of socketcall(2): accept and connect are whole or not at all.
        return not (number == 102 and _argument(fields, 0) in (3, 5, 18))
    match number:
        case 4 | 181:  # write, pwrite64
            return _write_comes_short(target, fields)
        case 371:  # recvfrom
            return bool(_argument(fields, 3) & _MSG_WAITALL)
        case 372:  # recvmsg
            return bool(_argument(fields, 2) & _MSG_WAITALL)
        case 247 | 385 | 416:  # io_getevents, io_pgetevents
            return _argument(fields, 1) > 1
        case 426:  # io_uring_enter
            return _submits_and_waits(fields)
    return False


def _submits_and_waits(fields: Sequence[bytes]) -> bool:
    return (
        _argument(fields, 1) > 0 and _argument(fields, 2) > 0 and bool(_argument(fields, 3) & _IORING_ENTER_GETEVENTS)
    )


def _write_comes_short(target: Target, fields: Sequence[bytes]) -> bool:
    descriptor, size = _argument(fields, 0), _argument(fields, 2)
    if size > PIPE_BUF:
        return True
    try:
        kind = os.readlink(f"task/{target.living}/fd/{descriptor}", dir_fd=target.directory)
    except OSError:
        return True
    return not kind.startswith(("pipe:", "anon_inode:"))


def _read_optional(root: Root, path: str) -> bytes:
    try:
        return root.read_bytes(path)
    except OSError as error:
        if libc.is_gone(error):
            return b""
        raise
