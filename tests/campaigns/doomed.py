"""A tracer that dies by SIGKILL exactly before or after a certain system call of an act: the product's own code, in a
forked process that counts its own system calls (doom.c)."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import count, cycle
from typing import NamedTuple, NoReturn

from hetmemd.kernel import libc
from hetmemd.remote import slot
from hetmemd.remote.board import Board
from hetmemd.remote.process import Tracer
from hetmemd.remote.result import Outcome, ThreadResult
from hetmemd.remote.wire import Request

_PRCTL, _PTRACE, _PREAD64, _PWRITE64, _WAITID = 157, 101, 17, 18, 247  # arch/x86/entry/syscalls/syscall_64.tbl
_FORK, _FACCESSAT2 = 57, 439
_PR_SET_PDEATHSIG = 1

_REQUESTS = {
    "seize": 0x4206,
    "interrupt": 0x4207,
    "get": 0x4204,
    "set": 0x4205,
    "options": 0x4200,
    "signal": 0x4202,
    "dispatch": 0x4211,
    "rseq": 0x420F,
    "peek": 2,
    "continue": 7,
    "resume": 24,
    "detach": 17,
}
_NUMBERS = {"read": _PREAD64, "write": _PWRITE64, "wait": _WAITID, "look": _FACCESSAT2}
_NAMES = {(_PTRACE, request): name for name, request in _REQUESTS.items()} | {
    (number, 0): name for name, number in _NUMBERS.items()
}
_OWN = frozenset({9, 11, 12, 28, 230, 35, 24})
"""Its own memory, sleeping and yielding: mmap, munmap, brk, madvise, clock_nanosleep, nanosleep, sched_yield."""

_HEADER = struct.Struct("<6q")  # struct doom: call, request, occurrence, after, died, count
_CALL = struct.Struct("<3q")
_SIZE = 2 * mmap.PAGESIZE

_STEP = re.compile(r"(before|after) (\S+) (\d+)")


class Death(NamedTuple):
    died: bool
    """False where the act came to its end before."""
    steps: list[str]
    """All that its last attempt came by."""
    results: list[ThreadResult]
    """Of acts that came to their end."""


class Executioner:
    def __init__(self, library: str) -> None:
        """`library` is doom.c, built."""
        self._begin = ctypes.PyDLL(library).doom_begins
        self._begin.restype = ctypes.c_long
        self._doom = mmap.mmap(-1, _SIZE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._doom))
        self._descriptor = Board.create()
        self._board = _ForkingBoard(self._descriptor, self._fork)
        self._at_work = mmap.mmap(-1, mmap.PAGESIZE)

    def at_step(self, tracer: Tracer, request: Request, wanted: str | None) -> Death:
        """Serve `request` (one thread); the act itself is a process's that dies at a step, `before set 1` or the like.

        Where an attempt is repeated (a signal came between), the steps count anew. None: to the end.
        """
        _HEADER.pack_into(self._doom, 0, *(_wanted(wanted) if wanted else (0, 0, 0, 0)), 0, 0)
        self._board.clear()
        try:
            tracer.serve(request, self._board)
        except _Forked:
            pass
        except BaseException:
            if self._board.is_child:
                _fail()
            raise
        *_, died, calls = _HEADER.unpack_from(self._doom, 0)
        steps = _steps(_CALL.unpack_from(self._doom, _HEADER.size + _CALL.size * index) for index in range(calls))
        return Death(bool(died), steps, list(self._board.read()[0]))

    def _fork(self) -> None:
        """Returns in the child, which counts its calls from here on."""
        if child := _forked():
            _, status = os.waitpid(child, 0)
            died = _HEADER.unpack_from(self._doom, 0)[4]
            if os.waitstatus_to_exitcode(status) != (-signal.SIGKILL if died else 0):
                raise RuntimeError(f"the tracer failed by itself: status {status:#x}")
            raise _Forked
        self._board.is_child = True
        code = self._begin(ctypes.c_void_p(self._address))
        if code:
            raise OSError(-code, f"syscall user dispatch: {os.strerror(-code)}")

    def at_random(self, tracer: Tracer, requests: Sequence[Request], seconds: float) -> tuple[int, bool]:
        """Serve requests in turn in a process that is killed after a time at work.

        How many acts it finished, and whether it was amid one.
        """
        struct.pack_into("<QQ", self._at_work, 0, 0, 0)
        child = _forked()
        if not child:
            try:
                self._serve_on(tracer, cycle(requests))
            finally:
                _fail()
        end = time.monotonic() + 60
        # From when it is at work: a fork takes long in comparison.
        while not self._at_work[0] and time.monotonic() < end:
            time.sleep(0.0001)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise RuntimeError("the tracer failed by itself")
        finished: int = struct.unpack_from("<QQ", self._at_work, 0)[1]
        return finished, self._board.read()[1] is not None

    def _serve_on(self, tracer: Tracer, requests: Iterable[Request]) -> None:
        board = Board(self._descriptor)
        finished = 0
        struct.pack_into("<QQ", self._at_work, 0, 1, 0)
        for request in requests:
            board.clear()
            tracer.serve(request, board)
            finished += sum(was_injected(result) for result in board.read()[0])
            struct.pack_into("<QQ", self._at_work, 0, 1, finished)


class _Forked(Exception):
    """In the parent, whose part ends here."""


class _ForkingBoard(Board):
    """Where an act begins, a process is forked for it: all that precedes it is dear there, and the same every time."""

    def __init__(self, descriptor: int, fork: Callable[[], None]) -> None:
        super().__init__(descriptor)
        self._fork = fork
        self.is_child = False

    def act_on(self, tid: int) -> None:
        super().act_on(tid)
        self._fork()

    def add(self, result: ThreadResult) -> None:
        super().add(result)
        if self.is_child:
            os._exit(0)


def was_injected(result: ThreadResult) -> bool:
    """Whether it is the result of an act that stopped a thread and made it call."""
    return result.outcome is Outcome.APPLIED and result.pause_ns > 0


def _forked() -> int:
    """0 in the child. The bare system call: what the interpreter and the C library do besides is for threads."""
    child = libc.syscall(_FORK)
    if not child:
        libc.syscall(_PRCTL, _PR_SET_PDEATHSIG, signal.SIGKILL)
        # As in a tracer that is newly started: no two of them number their slots alike.
        slot._sequence = count(int.from_bytes(os.urandom(2), "little"))
    return child


def _fail() -> NoReturn:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)


def _wanted(step: str) -> tuple[int, int, int, int]:
    """`before set 1` as struct doom has it: call, request, occurrence, after."""
    matched = _STEP.fullmatch(step)
    if not matched:
        raise ValueError(f"no step: {step!r}")
    when, name, occurrence = matched.groups()
    if name in _REQUESTS:
        call, request = _PTRACE, _REQUESTS[name]
    elif name.startswith("ptrace-"):
        call, request = _PTRACE, int(name.removeprefix("ptrace-"))
    else:
        call, request = _NUMBERS[name] if name in _NUMBERS else int(name.removeprefix("call-")), 0
    return call, request, int(occurrence), when == "after"


def _steps(calls: Iterable[tuple[int, int, int]]) -> list[str]:
    """The steps of one attempt, to the thread's release; calls that have to do with the process itself left out."""
    steps: list[str] = []
    occurrences: Counter[str] = Counter()
    for call, request, done in calls:
        if call in _OWN:
            continue
        name = _NAMES.get((call, request), f"ptrace-{request}" if call == _PTRACE else f"call-{call}")
        occurrences[name] += 1
        steps.append(f"before {name} {occurrences[name]}")
        if not done:
            break
        steps.append(f"after {name} {occurrences[name]}")
        if name == "detach":
            break
    return steps
