"""Tracers that do harm, each of one kind: so that it can be shown that the victims notice."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import struct
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from hetmemd.kernel import procfs, ptrace
from hetmemd.remote.x86_64 import ORIG_RAX, R8, R15, RAX, RCX, RDX, RIP, RSP, X86_64, abi_of
from tests.campaigns.watched import ROOT, Watched

_NT_X86_XSTATE = 0x202
_XSTATE_ROOM = 1 << 14
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

_YMM_HIGH = 576
"""Offset of the upper halves of ymm0-15 in the standard layout (XSAVE, Intel SDM volume 1, 13.4); so it is wherever
there is AVX."""
_XMM = 160
_MXCSR = 24


class Held:
    """A thread that is stopped for harm."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.room = ptrace.RegisterSet()
        ptrace.seize(tid, ptrace.O_TRACESYSGOOD)
        ptrace.interrupt(tid)
        _, status = os.waitpid(tid, 0x40000000)
        self.signal = os.WSTOPSIG(status) if status >> 16 == 0 else 0
        understood = abi_of(self.room.get(tid))
        self.registers = understood[1] if understood else []
        self.in_syscall = bool(understood and understood[0].is_in_syscall(self.registers))

    def change(self, index: int, value: int) -> None:
        self.registers[index] = value & (1 << 64) - 1
        self.room.set(self.tid, X86_64.pack(self.registers))

    def let_go(self, deliver: bool = True) -> None:
        ptrace.detach(self.tid, self.signal if deliver else 0)


def _flip(index: int) -> Callable[[Held], bool]:
    def harm(held: Held) -> bool:
        held.change(index, held.registers[index] ^ 0x10)
        return True

    return harm


def _flip_when_spinning(index: int) -> Callable[[Held], bool]:
    """What a system call overwrites anyway."""

    def harm(held: Held) -> bool:
        return not held.in_syscall and _flip(index)(held)

    return harm


def _red_zone(held: Held) -> bool:
    memory = os.open(f"/proc/{held.tid}/mem", os.O_RDWR)
    try:
        os.pwrite(memory, b"\x5a", held.registers[RSP] - 64)
    finally:
        os.close(memory)
    return True


def _extended(offset: int) -> Callable[[Held], bool]:
    """Vector registers, and what rules them."""

    def harm(held: Held) -> bool:
        content = ctypes.create_string_buffer(_XSTATE_ROOM)
        vector = (ctypes.c_uint64 * 2)(ctypes.addressof(content), _XSTATE_ROOM)
        for request in (ptrace.GETREGSET, ptrace.SETREGSET):
            if _libc.ptrace(request, held.tid, _NT_X86_XSTATE, ctypes.addressof(vector)) == -1:
                raise OSError(ctypes.get_errno(), "XSTATE")
            if request == ptrace.GETREGSET:
                (byte,) = struct.unpack_from("B", content, offset)
                struct.pack_into("B", content, offset, byte ^ 0x20)
        return True

    return harm


def _interrupted(held: Held) -> bool:
    """As a tracer does that leaves a restart to nobody."""
    if not held.in_syscall or X86_64.signed(held.registers[RAX]) > -512:
        return False
    held.change(ORIG_RAX, -1)
    held.change(RAX, -errno.EINTR)
    return True


def _leaked(held: Held) -> bool:
    """The kernel's own code, for the program to see."""
    if not held.in_syscall or X86_64.signed(held.registers[RAX]) > -512:
        return False
    held.change(ORIG_RAX, -1)
    return True


def _short(held: Held) -> bool:
    """A wait that is over too soon, and says that it is not."""
    if not held.in_syscall or X86_64.signed(held.registers[RAX]) > -512:
        return False
    held.change(ORIG_RAX, -1)
    held.change(RAX, 0)
    return True


def _no_abort(held: Held) -> bool:
    """A restartable sequence that goes on, though another thread has run amid it."""
    area = ptrace.rseq_area(held.tid)
    if held.in_syscall or not area:
        return False
    memory = os.open(f"/proc/{held.tid}/mem", os.O_RDWR)
    try:
        os.pwrite(memory, bytes(8), area + 8)
    finally:
        os.close(memory)
    time.sleep(0.005)
    return True


def _called(held: Held) -> bool:
    """As a stub does that its tracer has left to a seccomp filter."""
    if not held.in_syscall or X86_64.signed(held.registers[RAX]) > -512:
        return False
    held.change(ORIG_RAX, -1)
    held.change(RAX, X86_64.numbers["set_mempolicy"])
    held.change(RIP, held.registers[RIP] - 2)
    return True


def _continued(held: Held) -> bool:
    """As if nobody had stopped it."""
    os.kill(held.tid, signal.SIGCONT)
    return True


def _swallowed(held: Held) -> bool:
    """A signal that never arrives."""
    if held.signal != signal.SIGRTMIN:
        return False
    held.let_go(deliver=False)
    return True


def _killed(held: Held) -> bool:
    os.kill(held.tid, signal.SIGKILL)
    return True


def _jumps(held: Held) -> bool:
    held.change(RIP, 0x1000)
    return True


class Harm(NamedTuple):
    victim: str
    do: Callable[[Held], bool]
    """False where the thread is not where the harm can be done; else it is done."""


HARMS: Mapping[str, Harm] = {
    "a general register": Harm("spin", _flip(R15)),
    "a register that calls overwrite": Harm("spin", _flip_when_spinning(RCX)),
    "an argument of a call": Harm("wait", _flip(R8)),
    "a register of a confined program": Harm("confined", _flip(RDX)),
    "the red zone": Harm("wait", _red_zone),
    "a vector register": Harm("spin", _extended(_XMM + 16 * 9)),
    "a wide vector register": Harm("spin", _extended(_YMM_HIGH + 16 * 3)),
    "rounding": Harm("wait", _extended(_MXCSR + 1)),
    "EINTR": Harm("wait", _interrupted),
    "a code of the kernel's own": Harm("steady", _leaked),
    "a wait that is too short": Harm("wait", _short),
    "a wait of another kind that is too short": Harm("steady", _short),
    "a sequence that is not begun again": Harm("rseq", _no_abort),
    "a signal that is lost": Harm("steady", _swallowed),
    "a call under a filter": Harm("killed", _called),
    "a stop that is lost": Harm("stopped", _continued),
    "death": Harm("thirtytwo", _killed),
    "a jump": Harm("spin", _jumps),
}


def do(harm: Harm, victim: Watched, seed: int, seconds: float) -> bool:
    """Try on random threads of a victim at work until the harm is done; False where the time was not enough."""
    rng = random.Random(seed)
    victim.work(True)
    victim.remember()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.0003)
        tid = rng.choice(procfs.tids(ROOT, victim.identity.pid))
        try:
            held = Held(tid)
        except ProcessLookupError:
            return True  # by what was done before
        done = harm.do(held)
        try:
            held.let_go()
        except ProcessLookupError:
            assert done
        if done:
            return True
    return False
