"""ptrace(2) for one seized tracee at a time, by ctypes: requests, register sets, and waiting.

For a process with one thread: nothing here lets go of the interpreter.

Numbers: include/uapi/linux/ptrace.h. Every function raises `OSError`; ESRCH means that the tracee is gone or not
stopped. Waiting is `wait_any()`, for a tracer that has one tracee and no children.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from typing import NamedTuple

PEEKDATA = 2
DETACH = 17
SYSCALL = 24
_GETSIGINFO = 0x4202
_GETSIGMASK = 0x420A
GETREGSET = 0x4204
SETREGSET = 0x4205
SEIZE = 0x4206
SETOPTIONS = 0x4200
INTERRUPT = 0x4207
GET_RSEQ_CONFIGURATION = 0x420F  # 5.13
GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211  # 6.4

_WALL = 0x40000000
"""Waits for threads too, whatever signal they were made to send (wait(2))."""
WAIT_EVENTS = os.WEXITED | os.WSTOPPED | os.WNOWAIT | _WALL

O_TRACESYSGOOD = 1
O_SUSPEND_SECCOMP = 1 << 21
"""Needs CAP_SYS_ADMIN, no seccomp filter on the tracer, and CONFIG_CHECKPOINT_RESTORE (kernel/ptrace.c)."""

EVENT_STOP = 128
"""Event of the stop that PTRACE_INTERRUPT and group stops give to a seized tracee."""
SYSCALL_STOP = 0x85
"""SIGTRAP | 0x80: entry to or exit from a syscall, with O_TRACESYSGOOD."""

# A thread is stopped while these run. Without `argtypes` ctypes passes what is given as it is: int for the request, the
# tid and lengths, prepared pointers for the rest. That and PyDLL (with one thread nobody else could use the
# interpreter meanwhile) halve the cost of a call.
_libc = ctypes.PyDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_waitid = _libc.waitid
_NULL = ctypes.c_void_p(0)
NT_PRSTATUS = 1
_NT_PRSTATUS = ctypes.c_void_p(NT_PRSTATUS)


def _failed(request: int, tid: int) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"ptrace {request:#x}: {os.strerror(code)}", f"/proc/{tid}")


class _IoVector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


_LENGTH_32 = 68
"""Of i386's struct user_regs_struct."""


class RegisterSet:
    """Room for a tracee's general registers, whatever their layout: the kernel says how long they are."""

    CAPACITY = 512

    def __init__(self) -> None:
        content = bytearray(self.CAPACITY)
        self._view = memoryview(content)
        self._words_64, self._words_32 = self._view.cast("Q"), self._view.cast("I")
        self._buffer = (ctypes.c_char * self.CAPACITY).from_buffer(content)
        self._vector = _IoVector(ctypes.addressof(self._buffer), self.CAPACITY)
        self._pointer = ctypes.byref(self._vector)
        self.address = ctypes.addressof(self._vector)
        """Of the iovec that PTRACE_GETREGSET and PTRACE_SETREGSET take."""
        self.length_address = self.address + _IoVector.length.offset
        """Of the bytes that there is room for, which the kernel sets to those that it has filled."""
        self.content_address = ctypes.addressof(self._buffer)

    def get(self, tid: int) -> bytes:
        """PTRACE_GETREGSET: the registers as `struct user_regs_struct` of the tracee's own ABI."""
        self._vector.length = self.CAPACITY
        if _ptrace(GETREGSET, tid, _NT_PRSTATUS, self._pointer) == -1:
            raise _failed(GETREGSET, tid)
        return self.content

    @property
    def content(self) -> bytes:
        return bytes(self._view[: self._vector.length])

    def fill(self, registers: bytes, changes: Iterable[tuple[int, int]] = ()) -> None:
        """Registers to be set; `changes` are (index, value) of 64-bit or, for 32-bit tracees, 32-bit registers."""
        length = len(registers)
        self._view[:length] = registers
        self._vector.length = length
        words = self._words_32 if length == _LENGTH_32 else self._words_64
        for index, value in changes:
            words[index] = value

    def put(self, index: int, registers: memoryview) -> None:
        """Change registers that stand side by side, of a 64-bit tracee."""
        self._view[8 * index : 8 * index + len(registers)] = registers

    def word(self, index: int) -> int:
        """One register."""
        return self._words_32[index] if self._vector.length == _LENGTH_32 else self._words_64[index]

    def set(self, tid: int, registers: bytes) -> None:
        """PTRACE_SETREGSET."""
        self.fill(registers)
        if _ptrace(SETREGSET, tid, _NT_PRSTATUS, self._pointer) == -1:
            raise _failed(SETREGSET, tid)


def seize(tid: int, options: int) -> None:
    """Become the tracer of a thread without stopping it. EPERM: traced already, exiting, or not permitted."""
    if _ptrace(SEIZE, tid, _NULL, ctypes.c_void_p(options)) == -1:
        raise _failed(SEIZE, tid)


def set_options(tid: int, options: int) -> None:
    """Of a thread that is stopped."""
    if _ptrace(SETOPTIONS, tid, _NULL, ctypes.c_void_p(options)) == -1:
        raise _failed(SETOPTIONS, tid)


def interrupt(tid: int) -> None:
    """Ask the thread to stop; `wait_any` tells when it has."""
    if _ptrace(INTERRUPT, tid, _NULL, _NULL) == -1:
        raise _failed(INTERRUPT, tid)


def resume_to_syscall(tid: int) -> None:
    """PTRACE_SYSCALL: run until the next entry to or exit from a syscall."""
    if _ptrace(SYSCALL, tid, _NULL, _NULL) == -1:
        raise _failed(SYSCALL, tid)


def detach(tid: int, signal: int = 0) -> None:
    """Let a stopped thread go on untraced, delivering `signal` where it was stopped to have one delivered."""
    if _ptrace(DETACH, tid, _NULL, ctypes.c_void_p(signal)) == -1:
        raise _failed(DETACH, tid)


def peek(tid: int, address: int) -> int:
    """The 8 bytes at `address` in the memory that the thread has *now*: a mem file may show an earlier program's."""
    ctypes.set_errno(0)
    word: int = _ptrace(PEEKDATA, tid, ctypes.c_void_p(address), _NULL)
    if word == -1 and ctypes.get_errno():
        raise _failed(PEEKDATA, tid)
    return word & (1 << 64) - 1


_words = (ctypes.c_uint64 * 16)()
_words_pointer = ctypes.byref(_words)
_RSEQ_SIZE = ctypes.c_void_p(24)  # struct ptrace_rseq_configuration
_SUD_SIZE = ctypes.c_void_p(32)  # struct ptrace_sud_config


def rseq_area(tid: int) -> int:
    """Address of the stopped thread's `struct rseq`, 0 where it has none (or before 5.13)."""
    size = _ptrace(GET_RSEQ_CONFIGURATION, tid, _RSEQ_SIZE, _words_pointer)
    if size == -1 and ctypes.get_errno() == errno.ESRCH:
        raise _failed(GET_RSEQ_CONFIGURATION, tid)
    return int(_words[0]) if size > 0 else 0


def syscall_user_dispatch(tid: int) -> bool | None:
    """Whether the stopped thread has its syscalls handed back to it as SIGSYS (Wine); None before 6.4, which does not
    tell."""
    if _ptrace(GET_SYSCALL_USER_DISPATCH_CONFIG, tid, _SUD_SIZE, _words_pointer) == -1:
        if ctypes.get_errno() == errno.ESRCH:
            raise _failed(GET_SYSCALL_USER_DISPATCH_CONFIG, tid)
        return None
    return bool(_words[0])


class SignalInfo(NamedTuple):
    """Of a siginfo_t."""

    code: int
    """si_code: positive where the kernel itself raised the signal."""
    address: int
    """si_addr, where the signal is one that an instruction raises."""


def signal_info(tid: int) -> SignalInfo:
    """Of the signal that the thread is stopped to have delivered."""
    if _ptrace(_GETSIGINFO, tid, _NULL, _words_pointer) == -1:
        raise _failed(_GETSIGINFO, tid)
    return SignalInfo(ctypes.c_int(_words[1] & 0xFFFFFFFF).value, int(_words[2]))


def blocked_signals(tid: int) -> int:
    """Mask of the signals that the stopped thread blocks: bit n - 1 is signal n."""
    if _ptrace(_GETSIGMASK, tid, ctypes.c_void_p(8), _words_pointer) == -1:
        raise _failed(_GETSIGMASK, tid)
    return int(_words[0])


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


def wait_any(*, patient: bool = True) -> Stop:
    """Wait until the one tracee stops or ends. `ChildProcessError` where there is none; `InterruptedError` where a
    signal came to the tracer itself, unless it is `patient`.

    Not for a certain tid: a thread that executes another program reports under its process's id from then on, and a
    wait for the old id never ends.

    A stop is looked at, not taken (WNOWAIT): taking it clears the signal that the thread stopped for, which would then
    be lost if the tracer died before it has it delivered (wait_task_stopped() in kernel/exit.c).
    """
    while _waitid(os.P_ALL, 0, _report_pointer, WAIT_EVENTS, _NULL) == -1:
        code = ctypes.get_errno()
        if code != errno.EINTR or not patient:
            raise OSError(code, os.strerror(code), "waitid")
    return reported()


def poll_any() -> Stop | None:
    """As `wait_any`, without waiting: None where nothing has happened."""
    _report[4] = 0
    if _waitid(os.P_ALL, 0, _report_pointer, WAIT_EVENTS | os.WNOHANG, _NULL) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "waitid")
    return reported() if _report[4] else None


# siginfo_t: si_signo, si_errno, si_code, (padding), si_pid, si_uid, si_status.
_report = (ctypes.c_int * 32)()
_report_pointer = ctypes.byref(_report)
_STOPPED = (os.CLD_TRAPPED, os.CLD_STOPPED)
REPORT = ctypes.addressof(_report)
"""Where waitid(2) is to write what `reported` tells of: a siginfo_t."""
REPORT_CODE, REPORT_PID, REPORT_STATUS = REPORT + 8, REPORT + 16, REPORT + 24


def reported() -> Stop:
    """What the last wait found."""
    tid = _report[4]
    if _report[2] in _STOPPED:
        return Stop(tid, _report[6] & 0xFF, _report[6] >> 8)
    os.waitid(os.P_PID, tid, os.WEXITED | _WALL)
    return Stop(tid, 0, 0)
