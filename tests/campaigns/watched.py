"""A program that checks itself all the time and tells how it fares, as one sees it who acts on it."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import time
from typing import NamedTuple

from hetmemd.kernel import libc, procfs
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root

ROOT = Root()
HANG = 60.0
"""Seconds after which something that never happened is a failure."""

_HEADER = struct.Struct("<QQQQ")  # struct report of tests/machine/targets/check.h: arena, arena_length, busy, count
_BUSY = 16
_FUTEX, _FUTEX_WAKE = 202, 1  # arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux/futex.h
_FARE = struct.Struct("<4Q32x")
_FARES = 64


class Fare(NamedTuple):
    """How one thread fares."""

    checks: int
    bad: int
    what: int
    interrupted: int


class Watched:
    def __init__(
        self, name: str, identity: ProcessId, descriptor: int, is_dear: bool, is_stopped: bool, is_killed: bool
    ) -> None:
        """`descriptor` is the page in which it tells; it may be closed afterwards."""
        self.name = name
        self.identity = identity
        self.is_dear = is_dear
        """At work it takes a whole processor."""
        self.is_stopped = is_stopped
        """It is to stay stopped by SIGSTOP, but while it is looked at."""
        self.is_killed = is_killed
        """A tracer that dies at a call of it leaves it to a filter that kills."""
        self._page = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._busy = ctypes.addressof(ctypes.c_char.from_buffer(self._page, _BUSY))
        self._seen: list[Fare] = []
        self._stopped_with = self.fares()
        self._interrupted = 0

    @property
    def arena(self) -> tuple[int, int]:
        """Address and length in bytes of memory to bind, 0 where it has none."""
        address, length, _, _ = _HEADER.unpack_from(self._page, 0)
        return address, length

    def work(self, busy: bool) -> None:
        """Whether it works, or rests until it is to."""
        self._page[_BUSY] = busy
        if busy:
            libc.syscall(_FUTEX, ctypes.c_void_p(self._busy), _FUTEX_WAKE, 1000, 0, 0, 0)

    def fares(self) -> list[Fare]:
        count = _HEADER.unpack_from(self._page, 0)[3]
        return [Fare._make(_FARE.unpack_from(self._page, _FARES + _FARE.size * index)) for index in range(count)]

    def tids(self) -> list[int]:
        return procfs.tids(ROOT, self.identity.pid)

    def remember(self) -> None:
        """From here on its threads have to get on."""
        self._seen = self.fares()

    def newly_interrupted(self) -> int:
        """Waits that ended with EINTR since this was asked last."""
        total = sum(fare.interrupted for fare in self.fares())
        new, self._interrupted = total - self._interrupted, total
        return new

    def is_alive(self) -> bool:
        """Asked of the kernel, not of the parent."""
        try:
            stat = procfs.stat(ROOT, self.identity.pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.start == self.identity.start and stat.state not in "ZX"

    def got_on(self) -> bool:
        """Whether each thread has looked at itself since `remember`: once to end what it was at, and once anew."""
        return all(now.checks >= then.checks + 2 for now, then in zip(self.fares(), self._seen, strict=False))

    def stop(self) -> None:
        """By SIGSTOP, and wait until it is."""
        os.kill(self.identity.pid, signal.SIGSTOP)
        self._wait_stopped(time.monotonic() + HANG)
        self._stopped_with = self.fares()

    def _wait_stopped(self, end: float) -> bool:
        """Whether all threads are, in time."""
        while any(procfs.stat(ROOT, self.identity.pid, tid).state != "T" for tid in self.tids()):
            if time.monotonic() > end:
                return False
            time.sleep(0.0005)
        return True

    def harm(self, wait_seconds: float = HANG) -> str:
        """What is wrong with it, empty where nothing is; waits until every thread has got on since `remember`.

        One that is to be stopped goes on for that long, and has to have been stopped all the time until now.
        """
        end = time.monotonic() + wait_seconds
        if not self.is_stopped:
            return self._harm(end)
        if not self.is_alive():
            return "it died"
        if not self._wait_stopped(end) or self.fares() != self._stopped_with:
            return f"it did not stay stopped: {self.fares()}, and was {self._stopped_with}"
        os.kill(self.identity.pid, signal.SIGCONT)
        if harm := self._harm(end):
            return harm
        self.stop()
        return ""

    def _harm(self, end: float) -> str:
        while True:
            if not self.is_alive():
                return "it died"
            for index, fare in enumerate(self.fares()):
                if fare.bad:
                    return f"thread {index} found {fare.bad} bad of {fare.checks}, the last of kind {fare.what}"
            if self.got_on():
                return ""
            if time.monotonic() > end:
                return f"it is stuck: {self.fares()}, and was {self._seen}"
            time.sleep(0.0005)
