"""The act: making one thread of another process call, and letting it go as if nothing had been.

At every step the tracer may be killed. Until the registers lead to the stub nothing about the thread has changed; from
then on the stub restores it by itself, and once the registers are back it needs no help either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from hetmemd.kernel import libc, ptrace
from hetmemd.remote import slot, x86_64
from hetmemd.remote.result import Outcome
from hetmemd.remote.slot import Image, Slot
from hetmemd.remote.target import Declined, Target, gone
from hetmemd.remote.wire import Call
from hetmemd.remote.x86_64 import Abi

ATTEMPTS = 50
"""A thread in a storm of signals is let go for each of them, and tried again."""

_STACK_SEARCH = 1 << 18
"""Bytes of stack in which a signal frame that leads back to a dead tracer's stub is looked for."""

_SYS_SECCOMP = 1  # si_code of SIGSYS, include/uapi/asm-generic/siginfo.h
_SYS_USER_DISPATCH = 2
_RSEQ_CS_FIELD = 8  # of struct rseq, and of struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip
_RSEQ_CS = struct.Struct("<IIQQQ")


class Done(NamedTuple):
    results: list[int]
    """Of each call made, the last one negative (-errno) if it failed: the calls after it were not made."""
    pause_ns: int


class _Again(Exception):
    """The thread was let go to take a signal, or runs another program than the one looked at."""


class Actor:
    """Acts on one thread at a time; in a process of its own, with no children and no other tracee."""

    def __init__(self, *, suspends_seccomp: bool) -> None:
        self._options = ptrace.O_TRACESYSGOOD
        if suspends_seccomp:
            # For every thread: whether it has a filter may change until it stops, and without one it means nothing.
            self._options |= ptrace.O_SUSPEND_SECCOMP
        self._registers = ptrace.RegisterSet()
        self._turn = 0

    def act(self, target: Target, tid: int, calls: Sequence[Call], data: bytes) -> Done:
        """Have thread `tid` make the calls, in one stop. None at all: only sweep. Raises `Declined`."""
        for _ in range(ATTEMPTS):
            try:
                return self._act_once(target, tid, calls, data)
            except _Again:
                continue
            except OSError as error:
                if libc.is_gone(error):
                    # Killed while it was held. It stays a zombie, and whoever waits for it waits, until this reaps it.
                    _reap(tid)
                    raise gone() from None
                raise
        raise Declined(Outcome.DEFERRED, "signals")

    def _act_once(self, target: Target, tid: int, calls: Sequence[Call], data: bytes) -> Done:
        self._seize(target, tid)
        begin = time.perf_counter_ns()
        ptrace.interrupt(tid)
        is_its_own = target.has_thread(tid)  # while it is on its way to the stop
        stop = _wait(tid)
        held = _Held(self._registers, target, tid)
        if stop.event != ptrace.EVENT_STOP:
            held.release(0 if stop.event else stop.signal)
            raise _Again
        try:
            if not is_its_own:
                raise gone()  # the tid came to be another process's before it was seized
            taken = self._look(held)
            image = self._prepare(held, data, taken) if calls else None
        except BaseException:
            # In particular, an EINTR that the stop has caused is mended even where nothing is done.
            held.release()
            raise
        results = []
        if image:
            for call in calls:
                results.append(held.call(image, call))
                if results[-1] < 0:
                    break
        held.release()
        return Done(results, time.perf_counter_ns() - begin)

    def _seize(self, target: Target, tid: int) -> None:
        try:
            ptrace.seize(tid, self._options)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise gone() from None
            if error.errno == errno.EPERM:
                raise _why_not(target, tid) from None
            raise

    def _look(self, held: _Held) -> list[Slot]:
        """What of the stopped thread forbids the call; clears its memory, and tells what room is taken there."""
        abi, vdso = held.abi, held.target.vdso
        if abi is None or (abi.bits == 64) != vdso.is_64bit:
            raise Declined(Outcome.UNSTEERABLE, "compat")
        if held.registers[abi.pc] in vdso.padding:
            # It is in the stub of a dead tracer, and leaves it when it can.
            raise Declined(Outcome.DEFERRED, "stub")
        if ptrace.syscall_user_dispatch(held.tid):
            raise Declined(Outcome.UNSTEERABLE, "syscall-user-dispatch")
        return _sweep(held, vdso.padding)

    def _prepare(self, held: _Held, data: bytes, taken: Sequence[Slot]) -> Image:
        """Write the stub."""
        assert held.abi
        held.leave_restartable_sequence()
        size = slot.length(held.abi, data)
        address = slot.place(held.target.vdso.padding, size, taken, self._turn)
        self._turn += 1
        if address is None:
            raise Declined(Outcome.DEFERRED if taken else Outcome.UNSTEERABLE, "vdso")
        image = slot.image(held.abi, address, held.tid, held.registers, data)
        held.write(image)
        return image


class _Held:
    """A stopped thread."""

    def __init__(self, room: ptrace.RegisterSet, target: Target, tid: int) -> None:
        self.target = target
        self.tid = tid
        self._room = room
        self._written: Slot | None = None
        self._original = room.get(tid)
        understood = x86_64.abi_of(self._original)
        self.abi: Abi | None = None
        self.registers: list[int] = []
        self._resumed = self._original
        """What the thread goes on with."""
        self._current = self._original
        """What the thread has now."""
        if understood:
            self.abi, registers = understood
            self.registers = self.abi.mended(registers)
            self._resumed = self.abi.pack(self.registers)

    def leave_restartable_sequence(self) -> None:
        """rseq(2): a critical section that was interrupted by code of its own thread begins again at its abort handler.

        The kernel would see to that, but it looks at where the thread is when it goes on, and that is the stub.
        """
        assert self.abi
        area = ptrace.rseq_area(self.tid)
        if not area:
            return
        try:
            (section,) = struct.unpack("<Q", os.pread(self.target.memory, 8, area + _RSEQ_CS_FIELD))
            if not section:
                return
            _, _, start, length, abort = _RSEQ_CS.unpack(os.pread(self.target.memory, _RSEQ_CS.size, section))
        except (OSError, struct.error):
            # Unreadable: that thread is about to be killed by the kernel for it, or this memory is no longer its own,
            # which is found out before anything is changed.
            return
        if self.abi.unsigned(self.registers[self.abi.pc] - start) < length:
            self.registers[self.abi.pc] = self.abi.unsigned(abort)
            self._resumed = self.abi.pack(self.registers)

    def stack_leads_into(self, padding: range) -> bool:
        """True where the stack holds an address in the padding: a handler that interrupted a stub returns there."""
        assert self.abi
        pointer = self.registers[self.abi.stack] & ~7
        size = _STACK_SEARCH
        while size >= 4096:
            try:
                stack = os.pread(self.target.memory, size, pointer)
            except OSError:
                size //= 2  # the stack ends sooner
                continue
            layout = "<Q" if self.abi.bits == 64 else "<I"
            whole = len(stack) // 8 * 8
            return any(value in padding for (value,) in struct.iter_unpack(layout, stack[:whole]))
        return False

    def write(self, image: Image) -> None:
        """Write the slot, and make sure that it stands in the memory that this thread runs in."""
        _write(self.target, image.slot.address, image.content)
        self._written = image.slot
        if os.pread(self.target.memory, len(image.content), image.slot.address) != image.content:
            raise Declined(Outcome.REFUSED, "proc-mem")
        try:
            shown = ptrace.peek(self.tid, image.mark_address)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EFAULT):
                raise
            shown = 0
        if shown != image.mark:
            self._written = None
            self.target.forget_memory()
            raise _Again

    def call(self, image: Image, call: Call) -> int:
        """One call through the stub; its result, -errno where it failed."""
        assert self.abi
        number = self.abi.numbers[call.name]
        arguments = [
            image.data + value if index in call.pointers else value for index, value in enumerate(call.arguments)
        ]
        self._set(self.abi.pack(self.abi.calling(self.registers, image.stub, number, arguments)))
        syscall_stops = 0
        while syscall_stops < 2:  # at its entry and at its exit
            ptrace.resume_to_syscall(self.tid)
            stop = _wait(self.tid)
            if stop.signal == ptrace.SYSCALL_STOP:
                syscall_stops += 1
            elif stop.event != ptrace.EVENT_STOP:
                self._let_go_for(stop)
        self._current = self._room.get(self.tid)
        return self.abi.signed(self.abi.unpack(self._current)[self.abi.result])

    def _let_go_for(self, stop: ptrace.Stop) -> None:
        """A signal is to be delivered: to the thread as it was, so that it interrupts what it would have."""
        if stop.signal == signal.SIGSYS and not stop.event:
            code = ptrace.signal_code(self.tid)
            if code in (_SYS_SECCOMP, _SYS_USER_DISPATCH):
                # Ours: the program never learns of it.
                self.release()
                if code == _SYS_SECCOMP:
                    raise Declined(Outcome.REFUSED, "seccomp")
                raise Declined(Outcome.UNSTEERABLE, "syscall-user-dispatch")
        self.release(0 if stop.event else stop.signal)
        raise _Again

    def _set(self, registers: bytes) -> None:
        self._room.set(self.tid, registers)
        self._current = registers

    def release(self, deliver: int = 0) -> None:
        """Everything back, the slot zeroed, and the thread on its way.

        Detaching from a syscall-exit-stop sends the thread through the kernel's own restart logic, with orig_rax back
        in its place. Continuing it from there would leak -512 into the program.
        """
        if self._current != self._resumed:
            self._set(self._resumed)
        if self._written:
            # Should this fail, the next act in this process does it.
            with contextlib.suppress(OSError):
                os.pwrite(self.target.memory, bytes(self._written.length), self._written.address)
            self._written = None
        ptrace.detach(self.tid, deliver)


def _sweep(held: _Held, padding: range) -> list[Slot]:
    """Zero what dead tracers left and nobody can need any more; the slots that stay are given back."""
    target = held.target
    try:
        found = slot.leftovers(os.pread(target.memory, len(padding), padding.start), padding.start)
    except (slot.Strange, OSError):
        raise Declined(Outcome.UNSTEERABLE, "vdso") from None
    if found and held.stack_leads_into(padding):
        raise Declined(Outcome.DEFERRED, "stub")
    taken = []
    for left in found:
        if left.tid != held.tid and target.has_thread(left.tid):
            taken.append(left)
        else:
            _write(target, left.address, bytes(left.length))
    return taken


def _wait(tid: int) -> ptrace.Stop:
    while True:
        try:
            stop = ptrace.wait_any()
        except ChildProcessError:
            raise gone() from None
        if stop.tid == tid:
            if stop.ended:
                raise gone()
            return stop
        if not stop.ended:
            # It executed another program and answers to its process's id now. Nothing of ours is left in it.
            ptrace.detach(stop.tid, 0 if stop.event or stop.signal == ptrace.SYSCALL_STOP else stop.signal)
            raise gone("executed")


def _reap(tid: int) -> None:
    while True:
        try:
            stop = ptrace.wait_any()
        except ChildProcessError:
            return
        if stop.ended:
            if stop.tid == tid:
                return
        else:
            ptrace.detach(stop.tid)
            return


def _write(target: Target, address: int, content: bytes) -> None:
    try:
        written = os.pwrite(target.memory, content, address)
    except OSError as error:
        # proc_mem.force_override=never (6.12), or an address space that is on its way out.
        raise Declined(Outcome.REFUSED, "proc-mem", error.errno or 0) from None
    if written != len(content):
        target.forget_memory()
        raise _Again


def _why_not(target: Target, tid: int) -> Declined:
    """EPERM has many reasons: tell them apart."""
    status = target.status(tid)
    if int(status.get("TracerPid", "0")):
        return Declined(Outcome.DEFERRED, "traced", errno.EPERM)
    if status.get("State", "")[:1] in ("Z", "X"):
        return gone()
    return Declined(Outcome.REFUSED, "permission", errno.EPERM)
