"""ptrace(2) for one seized tracee at a time, by ctypes: requests, register sets, and waiting.

Numbers: include/uapi/linux/ptrace.h. Every function raises `OSError`; ESRCH means that the tracee is gone or not
stopped. Waiting is `wait_any()`, for a tracer that has one tracee and no children.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from hetmemd.kernel import libc

_PEEKDATA = 2
_DETACH = 17
_SYSCALL = 24
_GETSIGINFO = 0x4202
_GETREGSET = 0x4204
_SETREGSET = 0x4205
_SEIZE = 0x4206
_INTERRUPT = 0x4207
_GET_RSEQ_CONFIGURATION = 0x420F  # 5.13
_GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211  # 6.4

_NT_PRSTATUS = 1
_WALL = 0x40000000
"""Waits for threads too, whatever signal they were made to send (wait(2))."""
_EVENTS = os.WEXITED | os.WSTOPPED | os.WNOWAIT | _WALL

O_TRACESYSGOOD = 1
O_SUSPEND_SECCOMP = 1 << 21
"""Needs CAP_SYS_ADMIN, no seccomp filter on the tracer, and CONFIG_CHECKPOINT_RESTORE (kernel/ptrace.c)."""

EVENT_STOP = 128
"""Event of the stop that PTRACE_INTERRUPT and group stops give to a seized tracee."""
SYSCALL_STOP = 0x85
"""SIGTRAP | 0x80: entry to or exit from a syscall, with O_TRACESYSGOOD."""

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _call(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    result: int = _ptrace(request, tid, address, data)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace {request:#x}: {os.strerror(code)}", f"/proc/{tid}")
    return result


class _IoVector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class RegisterSet:
    """Room for a tracee's general registers, whatever their layout: the kernel says how long they are."""

    CAPACITY = 512

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(self.CAPACITY)
        self._vector = _IoVector(ctypes.addressof(self._buffer), self.CAPACITY)
        self._address = ctypes.addressof(self._vector)

    def get(self, tid: int) -> bytes:
        """PTRACE_GETREGSET: the registers as `struct user_regs_struct` of the tracee's own ABI."""
        self._vector.length = self.CAPACITY
        _call(_GETREGSET, tid, _NT_PRSTATUS, self._address)
        return ctypes.string_at(self._buffer, self._vector.length)

    def set(self, tid: int, registers: bytes) -> None:
        """PTRACE_SETREGSET."""
        ctypes.memmove(self._buffer, registers, len(registers))
        self._vector.length = len(registers)
        _call(_SETREGSET, tid, _NT_PRSTATUS, self._address)


def seize(tid: int, options: int) -> None:
    """Become the tracer of a thread without stopping it. EPERM: traced already, exiting, or not permitted."""
    _call(_SEIZE, tid, 0, options)


def interrupt(tid: int) -> None:
    """Ask the thread to stop; `wait_any` tells when it has."""
    _call(_INTERRUPT, tid)


def resume_to_syscall(tid: int) -> None:
    """PTRACE_SYSCALL: run until the next entry to or exit from a syscall."""
    _call(_SYSCALL, tid)


def detach(tid: int, signal: int = 0) -> None:
    """Let a stopped thread go on untraced, delivering `signal` where it was stopped to have one delivered."""
    _call(_DETACH, tid, 0, signal)


def peek(tid: int, address: int) -> int:
    """The 8 bytes at `address` in the memory that the thread has *now*: a mem file may show an earlier program's."""
    ctypes.set_errno(0)
    word: int = _ptrace(_PEEKDATA, tid, address, 0)
    if word == -1 and ctypes.get_errno():
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace peek: {os.strerror(code)}", f"/proc/{tid}")
    return word & (1 << 64) - 1


_words = (ctypes.c_uint64 * 16)()
_words_address = ctypes.addressof(_words)


def rseq_area(tid: int) -> int:
    """Address of the stopped thread's `struct rseq`, 0 where it has none (or before 5.13)."""
    try:
        size = _call(_GET_RSEQ_CONFIGURATION, tid, 24, _words_address)
    except OSError as error:
        if libc.is_gone(error):
            raise
        return 0
    return int(_words[0]) if size > 0 else 0


def syscall_user_dispatch(tid: int) -> bool:
    """True where the stopped thread has its syscalls handed back to it as SIGSYS (Wine); False before 6.4."""
    try:
        _call(_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, 32, _words_address)
    except OSError as error:
        if libc.is_gone(error):
            raise
        return False
    return bool(_words[0])


def signal_code(tid: int) -> int:
    """si_code of the signal that the thread is stopped to have delivered."""
    _call(_GETSIGINFO, tid, 0, _words_address)
    return ctypes.c_int.from_address(_words_address + 8).value


class Stop(NamedTuple):
    """What waiting reported."""

    tid: int
    signal: int
    """The stop's signal, `SYSCALL_STOP` among them; 0 where the thread has ended."""
    event: int
    """`EVENT_STOP`, or 0 for a signal that is about to be delivered or a syscall stop."""

    @property
    def ended(self) -> bool:
        return self.signal == 0


def wait_any() -> Stop:
    """Wait until the one tracee stops or ends. `ChildProcessError` where there is none.

    Not for a certain tid: a thread that executes another program reports under its process's id from then on, and a
    wait for the old id never ends.

    A stop is looked at, not taken (WNOWAIT): taking it clears the signal that the thread stopped for, which would then
    be lost if the tracer died before it has it delivered (wait_task_stopped() in kernel/exit.c).
    """
    report = os.waitid(os.P_ALL, 0, _EVENTS)
    assert report
    if report.si_code in (os.CLD_TRAPPED, os.CLD_STOPPED):
        return Stop(report.si_pid, report.si_status & 0xFF, report.si_status >> 8)
    os.waitid(os.P_PID, report.si_pid, os.WEXITED | _WALL)
    return Stop(report.si_pid, 0, 0)
