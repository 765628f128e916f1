"""The usual course of an act as one table of system calls: from the interruption to the registers, and from the stub to
the release. A thread is held for as long as these take, and the little that is worked out between them.

Of a thread that is blocked in a syscall all that matters can be foreseen: where it is, and with which of the kernel's
codes that syscall is interrupted, from the last time. Then the whole table is gone over at once: in its middle the
registers are compared with what was foreseen, and the rest of them is copied to where it belongs.

Where anything is out of the usual, the table is left there, and `act` goes on step by step.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import signal
from collections.abc import Iterable
from enum import Enum, IntEnum

from hetmemd.kernel import ptrace
from hetmemd.kernel.batch import WORDS, Batch
from hetmemd.remote import slot
from hetmemd.remote.slot import Slot
from hetmemd.remote.x86_64 import X86_64

_PTRACE, _WAITID, _PWRITE64 = 101, 247, 18  # arch/x86/entry/syscalls/syscall_64.tbl
_CONTENT = 4096
_PATCHED = range(10, 17)
"""Registers that a call with up to three arguments is made with: rax, rcx, rdx, rsi, rdi, orig_rax, rip. They stand
side by side; rcx does not matter, for the syscall instruction overwrites it."""
_NO_REGISTERS = bytes(X86_64.layout.size)
_DISPATCH_SIZE = 32


class Stopped(Enum):
    """What the first batch found."""

    AS_USUAL = enum.auto()
    """By the interruption; its registers are in `original`."""
    OTHERWISE = enum.auto()
    """For another reason, or another thread is reported: `ptrace.reported` tells. Its registers are in `original`."""
    UNKNOWN = enum.auto()
    """It has to be waited for once more."""


class Reached(IntEnum):
    """How far the second batch came: the step that was not done."""

    WRITE = 0
    MARK = 1
    ENTER = 2
    ENTRY_STOP = 3
    EXIT_STOP = 4
    RESTORE = 5
    ZERO = 6
    DETACH = 7
    ALL = 8


class Course:
    def __init__(self, options: int) -> None:
        """`options` are what the thread is traced with from its stop on: a seccomp filter that is suspended must not
        let through what the thread does before."""
        self.original = ptrace.RegisterSet()
        self._calling = ptrace.RegisterSet()
        self.after = ptrace.RegisterSet()
        self._resumed = ptrace.RegisterSet()
        content = bytearray(_CONTENT)
        self._content = memoryview(content)
        self._buffer = (ctypes.c_char * _CONTENT).from_buffer(content)
        self._zeros = ctypes.create_string_buffer(_CONTENT)
        self._small = (ctypes.c_uint64 * 8)()
        self._patch = (ctypes.c_uint64 * (len(_PATCHED) + 1))()
        small = ctypes.addressof(self._small)
        self._tids: list[int] = []
        self._steps: list[Reached] = []

        self.batch = batch = Batch(64)
        self._ptrace(ptrace.INTERRUPT)
        self._wait()
        self._ptrace(ptrace.GETREGSET, ptrace.NT_PRSTATUS, self.original.address)
        self._stopped = self._is_stop(signal.SIGTRAP | ptrace.EVENT_STOP << 8)
        self._dispatch = self._ptrace(ptrace.GET_SYSCALL_USER_DISPATCH_CONFIG, _DISPATCH_SIZE, small)
        self._bridge = batch.count
        self._foreseen = self._make_bridge(small)
        self._second = self._ended = batch.count
        self._ptrace(ptrace.SETOPTIONS, 0, options)
        self._write = self._pwrite(ctypes.addressof(self._buffer), Reached.WRITE)
        self._written = self._compare(batch.address_of_result(self._write), 0, Reached.WRITE)
        # The system call itself, unlike the C library's function, writes the word to where the last argument points.
        self._peek = self._ptrace(ptrace.PEEKDATA, 0, small + 32, Reached.MARK)
        self._low = self._compare(small + 32, 0, Reached.MARK)
        self._high = self._compare(small + 36, 0, Reached.MARK)
        self._ptrace(ptrace.SETREGSET, ptrace.NT_PRSTATUS, self._calling.address, Reached.ENTER)
        for step in (Reached.ENTRY_STOP, Reached.EXIT_STOP):
            self._ptrace(ptrace.SYSCALL, 0, 0, step)
            self._wait(step)
            self._is_stop(ptrace.SYSCALL_STOP, step)
        self._ptrace(ptrace.GETREGSET, ptrace.NT_PRSTATUS, self.after.address, Reached.RESTORE)
        self._ptrace(ptrace.SETREGSET, ptrace.NT_PRSTATUS, self._resumed.address, Reached.RESTORE)
        self._zero = self._pwrite(ctypes.addressof(self._zeros), Reached.ZERO)
        self._ptrace(ptrace.DETACH, 0, 0, Reached.DETACH)

    def _make_bridge(self, dispatch: int) -> dict[str, int]:
        """For programs of the 64-bit ABI. The indices of what is to be filled in."""
        compare, copy = self._compare, self._copy
        registers = self.original.content_address
        size = X86_64.layout.size
        compare(self.original.address + 8, size)
        compare(registers + 8 * X86_64.segment, X86_64.code_segment)
        compare(dispatch, 0)
        indices = {
            "asked": compare(registers + 8 * X86_64.asked, 0),
            "code": compare(registers + 8 * X86_64.result, 0),
            "low": compare(registers + 8 * X86_64.pc, 0),
            "high": compare(registers + 8 * X86_64.pc + 4, 0),
        }
        compare(registers + 8 * X86_64.result + 4, 0xFFFFFFFF)  # the code is negative
        content = ctypes.addressof(self._buffer) + slot.HEADER
        for offset, register in X86_64.kept:
            copy(content + offset, registers + 8 * register, 8)
        copy(self._calling.content_address, registers, size)
        patch = ctypes.addressof(self._patch)
        copy(self._calling.content_address + 8 * _PATCHED.start, patch, 8 * len(_PATCHED))
        copy(self._resumed.content_address, registers, size)
        copy(self._resumed.content_address + 8 * X86_64.result, patch + 8 * len(_PATCHED), 8)
        return indices

    def _copy(self, to: int, start: int, count: int) -> int:
        return self._note(self.batch.copy(to, start, count), Reached.WRITE)

    def _note(self, index: int, step: Reached) -> int:
        self._steps += [step] * (index + 1 - len(self._steps))
        return index

    def _ptrace(self, request: int, address: int = 0, data: int = 0, step: Reached = Reached.WRITE) -> int:
        index = self._note(self.batch.call(_PTRACE, request, 0, address, data), step)
        self._tids.append(index * WORDS + 2)
        return index

    def _wait(self, step: Reached = Reached.WRITE) -> int:
        return self._note(self.batch.call(_WAITID, os.P_ALL, 0, ptrace.REPORT, ptrace.WAIT_EVENTS, 0), step)

    def _pwrite(self, address: int, step: Reached) -> int:
        return self._note(self.batch.call(_PWRITE64, 0, address, 0, 0), step)

    def _compare(self, address: int, value: int, step: Reached = Reached.WRITE) -> int:
        return self._note(self.batch.compare(address, value), step)

    def _is_stop(self, status: int, step: Reached = Reached.WRITE) -> int:
        """That what was waited for is this stop of this thread; the index of the first comparison."""
        first = self._compare(ptrace.REPORT_CODE, os.CLD_TRAPPED, step)
        self._tids.append(self._compare(ptrace.REPORT_PID, 0, step) * WORDS + 2)
        self._compare(ptrace.REPORT_STATUS, status, step)
        return first

    def prepare(self, tid: int, memory: int, room: Slot | None) -> None:
        """All that is known before the thread stops."""
        words = self.batch.words
        for at in self._tids:
            words[at] = tid
        self.original.empty()
        self.after.empty()
        self._small[0] = 0
        if room:
            for index in (self._write, self._zero):
                words[index * WORDS + 1] = memory
                words[index * WORDS + 3] = room.length
                words[index * WORDS + 4] = room.address
            words[self._written * WORDS + 2] = room.length
            words[self._peek * WORDS + 3] = room.mark_address
            words[self._low * WORDS + 2] = room.mark & 0xFFFFFFFF
            words[self._high * WORDS + 2] = room.mark >> 32

    def foresee(self, room: Slot, changes: Iterable[tuple[int, int]], asked: int, code: int, pc: int) -> bool:
        """Get ready for a thread that will be found in syscall `asked`, interrupted with `code` (negative), at `pc`.

        False where the call cannot be made in this way.
        """
        if any(index not in _PATCHED for index, _ in changes):
            return False
        registers = [0] * (X86_64.layout.size // 8)
        registers[X86_64.asked], registers[X86_64.result], registers[X86_64.pc] = asked, X86_64.unsigned(code), pc
        mended = X86_64.mended(registers)
        content = room.head + X86_64.stub(room.stub, mended) + room.tail
        self._content[: len(content)] = content
        for index, value in changes:
            self._patch[index - _PATCHED.start] = value
        self._patch[len(_PATCHED)] = mended[X86_64.result]
        # Only for their length.
        self._calling.fill(_NO_REGISTERS)
        self._resumed.fill(_NO_REGISTERS)
        foreseen, words = self._foreseen, self.batch.words
        for name, value in (("asked", asked), ("code", code), ("low", pc), ("high", pc >> 32)):
            words[foreseen[name] * WORDS + 2] = value & 0xFFFFFFFF
        return True

    def go(self) -> Reached | None:
        """The whole course, as it was foreseen; None where the thread was stopped and found otherwise (`found`)."""
        self._ended = self.batch.run(0, self.batch.count)
        if self._ended == self.batch.count:
            return Reached.ALL
        return self._steps[self._ended] if self._ended >= self._second else None

    def stop(self) -> Stopped:
        """Interrupt the thread and wait for it. `OSError` ESRCH where it has ended before."""
        self._ended = self.batch.run(0, self._bridge)
        return self.found()

    def found(self) -> Stopped:
        """How the thread was stopped, by how far the table was gone over."""
        done = self._ended
        if done >= self._dispatch:  # which is not to be had before 6.4
            return Stopped.AS_USUAL
        if done >= self._stopped:
            return Stopped.OTHERWISE
        code = -self.batch.result(done)
        if done == 0:
            raise OSError(code, os.strerror(code), "PTRACE_INTERRUPT")
        if done == 1 and code != errno.EINTR:
            raise ChildProcessError(code, os.strerror(code))
        return Stopped.UNKNOWN

    @property
    def dispatches(self) -> bool:
        """Whether the stopped thread has its syscalls handed back to it as SIGSYS."""
        return bool(self._small[0])

    @dispatches.setter
    def dispatches(self, value: bool) -> None:
        self._small[0] = value

    def call(self, content: bytes, resumed: bytes, changes: Iterable[tuple[int, int]]) -> Reached:
        """Write the stub, have the thread run it, put everything back and let it go; how far that came.

        The thread is sent into the stub with the registers `resumed` but for `changes`: (index, value).
        """
        self._content[: len(content)] = content
        self._calling.fill(resumed, changes)
        self._resumed.fill(resumed)
        count = self.batch.count - self._second
        self._ended = self._second + self.batch.run(self._second, count)
        return Reached.ALL if self._ended == self.batch.count else self._steps[self._ended]

    @property
    def calling(self) -> bytes:
        """The registers with which the thread was sent into the stub."""
        return self._calling.content

    @property
    def error(self) -> int:
        """errno of the call that ended the second batch, 0 where a comparison did."""
        return -self.batch.result(self._ended) if self.batch.is_call(self._ended) else 0
