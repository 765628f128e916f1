"""A stopped thread: its registers, what its memory holds of ours, and the way back."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
from collections.abc import Iterable

from hetmemd.kernel import ptrace
from hetmemd.remote import slot, x86_64
from hetmemd.remote.result import Outcome
from hetmemd.remote.slot import Slot
from hetmemd.remote.target import Declined, Target
from hetmemd.remote.x86_64 import Abi

_STACK_SEARCH = 1 << 20
"""Bytes of stack in which a signal frame that leads back to a dead tracer's stub is looked for."""

_RSEQ_CS_FIELD = 8  # of struct rseq
_RSEQ_CS = struct.Struct("<IIQQQ")  # version, flags, start_ip, post_commit_offset, abort_ip (include/uapi/linux/rseq.h)


class Held:
    """From a ptrace stop to `release`. Raises `Declined`, and `OSError` ESRCH where the thread was killed meanwhile."""

    def __init__(self, room: ptrace.RegisterSet, target: Target, tid: int) -> None:
        """`room` holds the registers that the thread stopped with."""
        self.target = target
        self.tid = tid
        self._room = room
        self._slot: Slot | None = None
        # What the thread has now, and what it goes on with.
        self._current = self.resumed = self._original = room.content
        self._abi: Abi | None = None
        self._registers: list[int] = []
        if understood := x86_64.abi_of(self._current):
            self._abi, registers = understood
            self._go_on_with(self._abi.mended(registers), registers)

    @property
    def is_64bit(self) -> bool:
        return self._abi is x86_64.X86_64

    @property
    def interrupted(self) -> tuple[int, int] | None:
        """(syscall, code) where the thread of a 64-bit program was interrupted in a syscall, with a negative code."""
        if self._abi and self.is_64bit:
            _, registers = x86_64.abi_of(self._original) or (None, [])
            code = self._abi.signed(registers[self._abi.result])
            if self._abi.is_in_syscall(registers) and code < 0:
                return registers[self._abi.asked], code
        return None

    def _go_on_with(self, registers: list[int], before: list[int]) -> None:
        assert self._abi
        self._registers = registers
        if registers is not before:
            self.resumed = self._abi.pack(registers)

    def look(self, *, dispatches: bool | None) -> bool:
        """What can only be seen of a stopped thread, and forbids the call. False: it runs another program by now.

        `dispatches` is what `ptrace.syscall_user_dispatch` says of it.
        """
        abi, room = self._abi, self.target.room
        if abi is not room.abi:
            self.target.forget_memory()
            if abi is self.target.room.abi:
                return False
            # 64-bit code in a 32-bit program, the other way round, or neither.
            raise Declined(Outcome.UNSTEERABLE, "compat")
        if self._registers[abi.pc] in room.padding:
            # It is in the stub of a dead tracer, and leaves it when it can.
            raise Declined(Outcome.DEFERRED, "stub")
        if dispatches:
            raise Declined(Outcome.UNSTEERABLE, "syscall-user-dispatch")
        if dispatches is None and (ptrace.blocked_signals(self.tid) & self._caught()) >> (signal.SIGSYS - 1) & 1:
            # Who dispatches its syscalls has a handler for that. The call would raise SIGSYS, which we would keep from
            # it: but of a signal that is blocked the kernel forgets the handler first (force_sig_info_to_task() in
            # kernel/signal.c), and the next one kills.
            raise Declined(Outcome.DEFERRED, "sigsys-blocked")
        return True

    def _caught(self) -> int:
        """Mask of the signals that the program handles."""
        return int(self.target.status(self.tid).get("SigCgt", "0"), 16)

    @property
    def came_short(self) -> bool:
        """Whether it was stopped amid a write into a pipe, which returns early for that.

        Nothing else is like it: there are no boundaries in a pipe, no time limit, and no errors that wait to be told.
        """
        if self._abi is None or not self._abi.came_short(self._registers):
            return False
        if self.target.status(self.tid).get("Seccomp", "0") != "0":
            return False  # who watches over its calls has not seen this one
        return self.target.has_pipe(self.tid, self._registers[self._abi.arguments[0]] & 0xFFFFFFFF)

    def enter_rest(self, room: Slot) -> bool:
        """Send the thread to do the rest of the write that came short. False where the stub cannot be written."""
        assert self._abi
        if not self._put(room, room.head + self._abi.rest(self._registers) + room.tail):
            return False
        self.enter(self._abi.asking_for_rest(room.stub, self._registers))
        return True

    def wrote(self, result: int) -> None:
        """The rest came to that, or failed: what the thread goes on with is the whole."""
        assert self._abi
        registers = list(self._registers)
        registers[self._abi.result] += max(result, 0)
        self._go_on_with(registers, self._registers)

    def sweep(self) -> bool:
        """Zero what dead tracers left and nobody can need any more. True if there was anything."""
        room = self.target.room
        if not room.leftovers:
            return False
        if self._stack_leads_into(room.padding):
            # A handler that interrupted a stub returns there.
            raise Declined(Outcome.DEFERRED, "stub")
        swept = [left for left in room.leftovers if left.tid == self.tid or not self.target.has_thread(left.tid)]
        for left in swept:
            self.target.zero(left)
        return bool(swept)

    def _stack_leads_into(self, padding: range) -> bool:
        assert self._abi
        pointer = self._registers[self._abi.stack] & ~7
        # As much as there is: the stack may end sooner.
        for size in (_STACK_SEARCH >> halvings for halvings in range(17)):
            with contextlib.suppress(OSError):
                stack = os.pread(self.target.memory, size, pointer)
                return slot.holds_address(stack, self._abi.bits // 8, padding)
        return False

    def leave_restartable_sequence(self) -> None:
        """rseq(2): a critical section that was interrupted by code of its own thread begins again at its abort handler.

        The kernel would see to that, but it looks at where the thread is when it goes on, and that is the stub.
        """
        assert self._abi
        if self._abi.is_in_syscall(self._registers):
            return  # critical sections hold no syscalls
        area = ptrace.rseq_area(self.tid)
        if not area:
            return
        try:
            (section,) = struct.unpack("<Q", os.pread(self.target.memory, 8, area + _RSEQ_CS_FIELD))
            if not section:
                return
            _, _, start, length, abort = _RSEQ_CS.unpack(os.pread(self.target.memory, _RSEQ_CS.size, section))
        except (OSError, struct.error):
            # Unreadable: the kernel is about to kill the thread for that, or this memory is no longer its own, which is
            # found out before anything is changed.
            return
        if self._abi.unsigned(self._registers[self._abi.pc] - start) < length:
            registers = list(self._registers)
            registers[self._abi.pc] = self._abi.unsigned(abort)
            self._go_on_with(registers, self._registers)

    def content(self, slot: Slot) -> bytes:
        """What is to be written at the slot's address."""
        assert self._abi
        return slot.head + self._abi.stub(slot.stub, self._registers) + slot.tail

    def write(self, slot: Slot) -> bool:
        """Write the stub. False where it does not stand in the memory that this thread runs in."""
        return self._put(slot, self.content(slot))

    def _put(self, slot: Slot, content: bytes) -> bool:
        if not self.target.write(slot.address, content):
            return False
        try:
            # The slot is in one page and was written whole: its mark stands for all of it.
            shown = ptrace.peek(self.tid, slot.mark_address)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EFAULT):
                raise
            shown = 0
        if shown != slot.mark:
            return False  # written into memory that is no more: there is nothing to zero in what took its place
        self._slot = slot
        return True

    def enter(self, changes: Iterable[tuple[int, int]]) -> None:
        """Send the thread into the stub; `changes` are its registers for that (`Abi.calling`)."""
        self._room.fill(self.resumed, changes)
        self._set(self._room.content)

    def asks_for(self, changes: Iterable[tuple[int, int]]) -> bool:
        """At the entry of a syscall: whether it is the one that `enter` sent the thread for."""
        assert self._abi
        self._current = self._room.get(self.tid)
        wanted = dict(changes)
        number = wanted[self._abi.result]
        arguments = [(index, wanted[index]) for index in self._abi.arguments if index in wanted]
        return all(self._room.word(index) == value for index, value in [(self._abi.asked, number), *arguments])

    def skip(self) -> None:
        """At the entry of a syscall: none is made. The number -1 leaves the result as it is."""
        assert self._abi
        self._room.fill(self._current, [(self._abi.asked, self._abi.unsigned(-1))])
        self._set(self._room.content)

    def has_entered(self, slot: Slot, calling: bytes) -> None:
        """Others have written the slot, and sent the thread into it."""
        self._slot, self._current = slot, calling

    def was_restored(self) -> None:
        """Others have put the registers back."""
        self._slot, self._current = None, self.resumed

    def result_in(self, registers: ptrace.RegisterSet) -> int:
        """The result of a call that is over, by the registers after it."""
        assert self._abi
        return self._abi.signed(registers.word(self._abi.result))

    def result(self) -> int:
        """Of the call, once it is over."""
        self._current = self._room.get(self.tid)
        return self.result_in(self._room)

    def _set(self, registers: bytes) -> None:
        self._room.set(self.tid, registers)
        self._current = registers

    def release(self, deliver: int = 0) -> None:
        """Everything back, the slot zeroed, and the thread on its way, with a signal that it stopped for.

        Detaching from a syscall-exit-stop sends the thread through the kernel's own restart logic, with orig_rax back
        in its place. Continuing it from there would leak -512 into the program.
        """
        if self._current != self.resumed:
            self._set(self.resumed)
        if self._slot:
            # Should this fail, the next act in this process does it.
            with contextlib.suppress(OSError):
                os.pwrite(self.target.memory, bytes(self._slot.length), self._slot.address)
            self._slot = None
        ptrace.detach(self.tid, deliver)
