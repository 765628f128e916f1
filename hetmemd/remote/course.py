"""The usual course of an act as one table of system calls: from the seizure to the registers, from the stub to the
release, and what the kernel shows of the thread then. A thread is held for as long as these take, and the little that
is worked out between them.

Most of what matters can be foreseen. Of a thread that is blocked: where it is, and with which of the kernel's codes its
syscall is interrupted, from the last time. Of one that runs: that it is in no syscall and no restartable sequence. Then
the whole table is gone over at once: in its middle the thread is compared with what was foreseen, and its registers are
copied to where they belong.

Where anything is out of the usual, the table is left there, and `act` goes on step by step. For 64-bit programs; any
thread may be stopped by it.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import functools
import os
import signal
import struct
from enum import Enum, IntEnum
from typing import NamedTuple

from hetmemd.kernel import ptrace
from hetmemd.kernel.batch import WORDS, Batch
from hetmemd.remote import slot
from hetmemd.remote.readback import POLICY
from hetmemd.remote.slot import Slot
from hetmemd.remote.x86_64 import X86_64, Abi

# arch/x86/entry/syscalls/syscall_64.tbl
_PTRACE, _WAITID, _PREAD64, _PWRITE64, _CLOCK_GETTIME, _FACCESSAT = 101, 247, 17, 18, 228, 269
_CLOCK_MONOTONIC = 1
_CONTENT = 4096
_NAME = 32
"""Bytes for a file's name below /proc/PID, and more."""
_SENT = range(7, 17)
"""Registers with which a thread is sent into the stub, side by side: r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax,
rip. rcx does not matter, for the syscall instruction overwrites it."""
_SENT_WORDS = struct.Struct(f"<{len(_SENT)}Q")
_SIZE = X86_64.layout.size
_EMPTY_STUB = X86_64.stub(0, [0] * (_SIZE // 8))
"""Without what it puts back. It does not depend on where it stands."""
_WORD = struct.Struct("<Q")
_RESULT_AT, _PC_AT = (slot.HEADER + offset for offset, _ in X86_64.resumed)
"""In what is written at a slot's address: what the stub puts back of these."""
_DISPATCH_SIZE, _RSEQ_SIZE = 32, 24  # struct ptrace_sud_config, struct ptrace_rseq_configuration
_RSEQ_HEAD = 16
"""Of struct rseq, with the critical section that the thread is in as its last 8 bytes."""
_GRANULE = 8
"""Bits: where a running thread is, is told in steps of 256 bytes."""
_GRANULES = (4096 >> _GRANULE) + 1


class Stopped(Enum):
    """How a thread was stopped."""

    AS_USUAL = enum.auto()
    """By the interruption; its registers are in `original`."""
    OTHERWISE = enum.auto()
    """For another reason, or another thread is reported: `ptrace.reported` tells. Its registers are in `original`."""
    UNKNOWN = enum.auto()
    """It has to be waited for once more."""


class Reached(IntEnum):
    """How far a thread was brought: the step that was not done."""

    STOP = 0
    """It is stopped at most, or not as it was foreseen: `found` tells."""
    WRITE = 1
    MARK = 2
    ENTER = 3
    ENTRY_STOP = 4
    CHECK = 5
    """That it asks for the call that it was sent for: another thread could have rewritten the stub."""
    EXIT_STOP = 6
    RESULT = 7
    RETURNED = 8
    """The call is over, and the thread can be sent for another one."""
    RESTORE = 9
    ZERO = 10
    DETACH = 11
    ALL = 12
    """But perhaps for the last look."""


@functools.lru_cache(maxsize=1024)
def _resumption(asked: int, code: int) -> tuple[int, int, int]:
    """Of a thread that is interrupted in syscall `asked` with `code` (negative).

    The result register and how far before its pc the stub makes it go on, and the result register that it has for the
    kernel to make it go on.
    """
    far = 1 << 20
    registers = [0] * (_SIZE // 8)
    registers[X86_64.asked], registers[X86_64.result], registers[X86_64.pc] = asked, X86_64.unsigned(code), far
    mended = X86_64.mended(registers)
    result, pc = X86_64.resumption(mended)
    return result, far - pc, mended[X86_64.result]


class Sending(NamedTuple):
    """The registers with which a thread is sent into the stub."""

    changes: list[tuple[int, int]]
    """(index, value): those that differ from what it goes on with."""
    packed: bytes
    """All of `_SENT`, of a 64-bit program; else empty."""


def sending(abi: Abi, changes: list[tuple[int, int]]) -> Sending:
    if abi is not X86_64:
        return Sending(changes, b"")
    sent = [0] * len(_SENT)
    for register, value in changes:
        sent[register - _SENT.start] = value
    return Sending(changes, _SENT_WORDS.pack(*sent))


class Course:
    def __init__(self, options: int, *, blocked: bool) -> None:
        """For threads that are expected to be blocked in a syscall, or to run.

        `options` are what the thread is traced with from its stop on: a seccomp filter that is suspended must not let
        through what the thread does before.
        """
        self.original = ptrace.RegisterSet()
        self._calling = ptrace.RegisterSet()
        self._entered = ptrace.RegisterSet()
        self._after = ptrace.RegisterSet()
        self._resumed = ptrace.RegisterSet()
        content = bytearray(_CONTENT)
        self._content = memoryview(content)
        self._buffer = (ctypes.c_char * _CONTENT).from_buffer(content)
        self._zeros = ctypes.create_string_buffer(_CONTENT)
        self._dispatch = (ctypes.c_uint64 * (_DISPATCH_SIZE // 8))()
        self._word = ctypes.c_uint64()
        self._begin, self._end = (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 2)()
        self._folder, self._name = ctypes.create_string_buffer(_NAME), ctypes.create_string_buffer(_NAME)
        self._shown = ctypes.create_string_buffer(POLICY)
        sent = bytearray(8 * (len(_SENT) + 1))
        self._sent = memoryview(sent).cast("Q")
        """And the result register that it goes on with."""
        self._sent_only = memoryview(sent)[: 8 * len(_SENT)]
        self._sent_address = ctypes.addressof((ctypes.c_char * len(sent)).from_buffer(sent))
        # For their length: they are only ever filled with those of 64-bit programs.
        self._calling.fill(bytes(_SIZE))
        self._resumed.fill(bytes(_SIZE))
        self._capacity = ctypes.c_uint64(ptrace.RegisterSet.CAPACITY)
        self._capacity_address = ctypes.addressof(self._capacity)
        self._tids: list[int] = []
        self._steps: list[Reached] = []
        self._padding = range(0)

        self.batch = batch = Batch(96)
        for registers in (self.original, self._entered, self._after):
            self._copy(registers.length_address, self._capacity_address, 8)
        # Not yet with the options of the stop: see there.
        self._seized = self._ptrace(ptrace.SEIZE, 0, ptrace.O_TRACESYSGOOD)
        # The tid may have come to be another process's before; nothing of that is to be looked at.
        self._owned = self._note(batch.call(_FACCESSAT, 0, ctypes.addressof(self._folder), os.F_OK))
        self._note_time(self._begin, Reached.STOP)
        self._interrupted = self._ptrace(ptrace.INTERRUPT)
        self._waited = self._wait()
        self._ptrace(ptrace.GETREGSET, ptrace.NT_PRSTATUS, self.original.address)
        self._stopped = self._is_stop(signal.SIGTRAP | ptrace.EVENT_STOP << 8)
        at = ctypes.addressof(self._dispatch)
        self._looked = self._ptrace(ptrace.GET_SYSCALL_USER_DISPATCH_CONFIG, _DISPATCH_SIZE, at)
        self._bridge = batch.count
        self._compare(self.original.address + 8, _SIZE)
        self._compare(self._original(X86_64.segment), X86_64.code_segment)
        self._compare(at, 0)
        self._foreseen = self._compare_blocked() if blocked else []
        self._granules, self._area = (0, 0) if blocked else self._compare_running()
        self._copy_registers(blocked=blocked)
        self._second = batch.count
        self._ptrace(ptrace.SETOPTIONS, 0, options, Reached.WRITE)
        self._write = self._pwrite(ctypes.addressof(self._buffer), Reached.WRITE)
        self._written = self._compare(batch.address_of(self._write), 0, Reached.WRITE)
        # The system call itself, unlike the C library's function, writes the word to where the last argument points.
        word = ctypes.addressof(self._word)
        self._peek = self._ptrace(ptrace.PEEKDATA, 0, word, Reached.MARK)
        self._low = self._compare(word, 0, Reached.MARK)
        self._high = self._compare(word + 4, 0, Reached.MARK)
        self._enter = batch.count
        self._call_once()
        self._tail = batch.count
        self._ptrace(ptrace.SETREGSET, ptrace.NT_PRSTATUS, self._resumed.address, Reached.RESTORE)
        self._zero = self._pwrite(ctypes.addressof(self._zeros), Reached.ZERO)
        self._ptrace(ptrace.DETACH, 0, 0, Reached.DETACH)
        self._note_time(self._end, Reached.ALL)
        name, shown = ctypes.addressof(self._name), ctypes.addressof(self._shown)
        self._look = batch.read_file(name, shown, POLICY)
        self._note(batch.count - 1, Reached.ALL)
        self._ended = 0
        self._all = batch.count

    def _note_time(self, time: ctypes.Array[ctypes.c_uint64], step: Reached) -> None:
        self._note(self.batch.call(_CLOCK_GETTIME, _CLOCK_MONOTONIC, ctypes.addressof(time)), step)

    def _original(self, register: int) -> int:
        """Address of a register that the thread stopped with."""
        return self.original.content_address + 8 * register

    def _compare_blocked(self) -> list[int]:
        """Where syscall, code, and both halves of the pc are to be filled in."""
        records = [
            self._compare(self._original(X86_64.asked), 0),
            self._compare(self._original(X86_64.result), 0),
            self._compare(self._original(X86_64.pc), 0),
            self._compare(self._original(X86_64.pc) + 4, 0),
        ]
        self._compare(self._original(X86_64.result) + 4, 0xFFFFFFFF)  # the code is negative
        return [record * WORDS + 2 for record in records]

    def _compare_running(self) -> tuple[int, int]:
        """The first of the comparisons with where stubs stand, and the read of the thread's struct rseq."""
        self._compare(self._original(X86_64.asked), 0xFFFFFFFF)
        self._compare(self._original(X86_64.asked) + 4, 0xFFFFFFFF)
        first = self.batch.count
        for _ in range(_GRANULES):
            self._note(self.batch.differ(self._original(X86_64.pc) + _GRANULE // 8, 0))
        self._rseq = (ctypes.c_uint64 * ((_RSEQ_SIZE + _RSEQ_HEAD) // 8))()
        rseq = ctypes.addressof(self._rseq)
        self._ptrace(ptrace.GET_RSEQ_CONFIGURATION, _RSEQ_SIZE, rseq)
        area = self.batch.count + 1
        self._copy(self.batch.address_of(area, 4), rseq, 8)
        self._note(self.batch.call(_PREAD64, 0, rseq + _RSEQ_SIZE, _RSEQ_HEAD, 0))
        self._compare(self.batch.address_of(area), _RSEQ_HEAD)
        for half in (8, 4):
            self._compare(rseq + _RSEQ_SIZE + _RSEQ_HEAD - half, 0)
        return first, area

    def _copy_registers(self, *, blocked: bool) -> None:
        """Into the stub, into what the thread is sent there with, and into what it goes on with."""
        content = ctypes.addressof(self._buffer) + slot.HEADER
        for offset, register in X86_64.kept if blocked else (*X86_64.kept, *X86_64.resumed):
            self._copy(content + offset, self._original(register), 8)
        self._copy(self._calling.content_address, self._original(0), _SIZE)
        sent = self._sent_address
        self._copy(self._calling.content_address + 8 * _SENT.start, sent, 8 * len(_SENT))
        self._copy(self._resumed.content_address, self._original(0), _SIZE)
        if blocked:
            self._copy(self._resumed.content_address + 8 * X86_64.result, sent + 8 * len(_SENT), 8)

    def _call_once(self) -> None:
        self._ptrace(ptrace.SETREGSET, ptrace.NT_PRSTATUS, self._calling.address, Reached.ENTER)
        self._ptrace(ptrace.SYSCALL, 0, 0, Reached.ENTRY_STOP)
        self._wait(Reached.ENTRY_STOP)
        self._is_stop(ptrace.SYSCALL_STOP, Reached.ENTRY_STOP)
        self._ptrace(ptrace.GETREGSET, ptrace.NT_PRSTATUS, self._entered.address, Reached.CHECK)
        first, last = min(X86_64.arguments), max(X86_64.arguments)
        for here, there, count in (
            (X86_64.asked, X86_64.result, 1),
            (first, first, X86_64.result - first),
            (X86_64.result + 2, X86_64.result + 2, last - X86_64.result - 1),
        ):
            entered = self._entered.content_address + 8 * here
            sent = self._sent_address + 8 * (there - _SENT.start)
            self._note(self.batch.same(entered, sent, 8 * count), Reached.CHECK)
        self._ptrace(ptrace.SYSCALL, 0, 0, Reached.EXIT_STOP)
        self._wait(Reached.EXIT_STOP)
        self._is_stop(ptrace.SYSCALL_STOP, Reached.EXIT_STOP)
        self._ptrace(ptrace.GETREGSET, ptrace.NT_PRSTATUS, self._after.address, Reached.RESULT)

    def _copy(self, to: int, start: int, count: int) -> int:
        return self._note(self.batch.copy(to, start, count))

    def _note(self, index: int, step: Reached = Reached.STOP) -> int:
        self._steps += [step] * (index + 1 - len(self._steps))
        return index

    def _ptrace(self, request: int, address: int = 0, data: int = 0, step: Reached = Reached.STOP) -> int:
        index = self._note(self.batch.call(_PTRACE, request, 0, address, data), step)
        self._tids.append(index * WORDS + 2)
        return index

    def _wait(self, step: Reached = Reached.STOP) -> int:
        return self._note(self.batch.call(_WAITID, os.P_ALL, 0, ptrace.REPORT, ptrace.WAIT_EVENTS, 0), step)

    def _pwrite(self, address: int, step: Reached) -> int:
        return self._note(self.batch.call(_PWRITE64, 0, address, 0, 0), step)

    def _compare(self, address: int, value: int, step: Reached = Reached.STOP) -> int:
        return self._note(self.batch.compare(address, value), step)

    def _is_stop(self, status: int, step: Reached = Reached.STOP) -> int:
        """That what was waited for is this stop of this thread; the index of the first comparison."""
        first = self._compare(ptrace.REPORT_CODE, os.CLD_TRAPPED, step)
        self._tids.append(self._compare(ptrace.REPORT_PID, 0, step) * WORDS + 2)
        self._compare(ptrace.REPORT_STATUS, status, step)
        return first

    def prepare(self, tid: int, directory: int, memory: int, room: Slot | None, *, shows: bool) -> None:
        """All that is known before the thread stops. `directory` is an open /proc/PID; `shows`: `shown` is wanted."""
        words = self.batch.words
        words[self._owned * WORDS + 1] = words[self._look.opened * WORDS + 1] = directory
        self._folder.value = b"task/%d" % tid
        self._name.value = self._folder.value + b"/numa_maps"
        self._all = self.batch.count if shows else self._look.opened
        for at in self._tids:
            words[at] = tid
        self._dispatch[0] = 0
        if room:
            for index in (self._write, self._zero):
                words[index * WORDS + 1] = memory
                words[index * WORDS + 3] = room.length
                words[index * WORDS + 4] = room.address
            words[self._written * WORDS + 2] = room.length
            words[self._peek * WORDS + 3] = room.mark_address
            words[self._low * WORDS + 2] = room.mark & 0xFFFFFFFF
            words[self._high * WORDS + 2] = room.mark >> 32

    def foresee_blocked(self, room: Slot, to: Sending, asked: int, code: int, pc: int) -> None:
        """Get ready for a thread that will be found in syscall `asked`, interrupted with `code` (negative), at `pc`."""
        again, back, goes_on_with = _resumption(asked, code)
        self._sent[len(_SENT)] = goes_on_with
        self._foresee(room, to)
        _WORD.pack_into(self._content, _RESULT_AT, again)
        _WORD.pack_into(self._content, _PC_AT, pc - back)
        words = self.batch.words
        low = 0xFFFFFFFF
        at_asked, at_code, at_pc, at_pc_high = self._foreseen
        words[at_asked], words[at_code] = asked & low, code & low
        words[at_pc], words[at_pc_high] = pc & low, pc >> 32

    def foresee_running(self, room: Slot, to: Sending, memory: int, padding: range) -> None:
        """Get ready for a thread that will be found between two instructions of its own, not in the `padding`."""
        self._foresee(room, to)
        words = self.batch.words
        words[self._area * WORDS + 1] = memory
        if padding != self._padding:
            self._padding = padding
            last = padding.stop - 1 >> _GRANULE
            for place in range(_GRANULES):
                granule = min((padding.start >> _GRANULE) + place, last)
                words[(self._granules + place) * WORDS + 2] = granule & 0xFFFFFFFF

    def _foresee(self, room: Slot, to: Sending) -> None:
        self._put(room.head + _EMPTY_STUB + room.tail)
        self._sent_only[:] = to.packed

    def _put(self, content: bytes) -> None:
        self._content[: len(content)] = content

    def go(self, *, whole: bool) -> Reached:
        """All of it, as it was foreseen, or up to where the call is over. `is_seized` tells whether it began."""
        return self._run(0, self._all if whole else self._tail)

    def stop(self) -> None:
        """Seize and interrupt the thread, and wait for it. `is_seized` tells whether it began."""
        self._run(0, self._bridge)

    def interrupt(self) -> None:
        """What is left of `stop` for a thread that is seized and `is_anothers`."""
        self._run(self._interrupted, self._bridge)

    def found(self) -> Stopped:
        """How the thread was stopped. `OSError` ESRCH where it has ended before, `ChildProcessError` where it has."""
        done = self._ended
        if done >= self._looked:  # which is not to be had before 6.4
            return Stopped.AS_USUAL
        if done >= self._stopped:
            return Stopped.OTHERWISE
        code = -self.batch.result(done)
        if done == self._interrupted:
            raise OSError(code, os.strerror(code), "PTRACE_INTERRUPT")
        if done == self._waited and code != errno.EINTR:
            raise ChildProcessError(code, os.strerror(code))
        return Stopped.UNKNOWN

    def call(self, content: bytes, resumed: bytes, to: Sending, *, whole: bool) -> Reached:
        """Write the stub and have the stopped thread run it; if `whole`, put everything back and let it go.

        It goes on with the registers `resumed`, and is sent into the stub with those but for what `to` says.
        """
        self._put(content)
        self._sent_only[:] = to.packed
        self._calling.fill(resumed)
        self._resumed.fill(resumed)
        return self._send(self._second, self._all if whole else self._tail)

    def call_again(self, to: Sending) -> Reached:
        """Have the thread that has RETURNED run the stub once more."""
        self._sent_only[:] = to.packed
        return self._send(self._enter, self._tail)

    def _send(self, first: int, end: int) -> Reached:
        self._calling.put(_SENT.start, self._sent_only)
        return self._run(first, end)

    def release(self) -> Reached:
        """Put everything back and let the thread go, that has RETURNED."""
        return self._run(self._tail, self._all)

    def _run(self, first: int, end: int) -> Reached:
        self._ended = first + self.batch.run(first, end - first)
        if self._ended < end:
            if self._ended == self._look.read:
                self.batch.close_unread(self._look)
            return self._steps[self._ended]
        return Reached.ALL if end >= self._look.opened else Reached.RETURNED

    @property
    def dispatches(self) -> bool | None:
        """Of a thread that was stopped AS_USUAL: what `ptrace.syscall_user_dispatch` would say."""
        return None if self._ended == self._looked else bool(self._dispatch[0])

    @property
    def calling(self) -> bytes:
        """The registers with which the thread was sent into the stub."""
        return self._calling.content

    @property
    def result(self) -> int:
        """Of the call that is over, -errno where it failed."""
        return X86_64.signed(self._after.word(X86_64.result))

    @property
    def is_seized(self) -> bool:
        """Whether the thread was, in a run that has to do it."""
        return self._ended > self._seized

    @property
    def is_anothers(self) -> bool:
        """Whether the thread that was seized is not of this process."""
        return self._ended == self._owned

    @property
    def begin_ns(self) -> int:
        """When the thread was interrupted, by the clock of `time.perf_counter_ns`."""
        return self._begin[0] * 1_000_000_000 + self._begin[1]

    @property
    def pause_ns(self) -> int:
        """How long the thread was held until it was let go."""
        return (self._end[0] - self._begin[0]) * 1_000_000_000 + self._end[1] - self._begin[1]

    @property
    def shown(self) -> bytes | None:
        """The beginning of the thread's numa_maps after the act; None where it is not to be had."""
        return self._shown.raw[: self.batch.result(self._look.read)] if self._ended == self.batch.count else None

    @property
    def error(self) -> int:
        """errno of the call that was the step not done, 0 where it was a comparison."""
        return -self.batch.result(self._ended) if self.batch.is_call(self._ended) else 0
