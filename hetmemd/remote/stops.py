"""Stops of the one tracee, and its end: what was waited for, what came instead, and who it was. Raises `Declined`."""

from __future__ import annotations

import contextlib
import errno
import os
import time

from hetmemd.kernel import ptrace
from hetmemd.remote.target import Declined, gone

_SOON, _POLL = 0.005, 0.0005


def wait_for(tid: int, *, patient: bool = True) -> ptrace.Stop:
    """`InterruptedError` as `ptrace.wait_any`."""
    while True:
        try:
            stop = judged(tid, ptrace.wait_any(patient=patient))
        except ChildProcessError:
            raise gone() from None
        if stop:
            return stop


def wait_or_signal(tid: int) -> ptrace.Stop | None:
    """None where a signal came to this process itself."""
    try:
        return wait_for(tid, patient=False)
    except InterruptedError:
        return None


def judged(tid: int, stop: ptrace.Stop) -> ptrace.Stop | None:
    """A stop of this thread; None for the end of one that was held before."""
    if stop.tid == tid:
        if stop.ended:
            raise gone()
        return stop
    if not stop.ended:
        # It executed another program and answers to its process's id now. Nothing of ours is left in it.
        ptrace.detach(stop.tid, deliverable(stop))
        raise gone("executed")
    return None


def release_or_reap(tid: int, pid: int, seconds: float) -> Declined:
    """A seized thread does not answer to its id any more. It was killed, and stays a zombie until this reaps it; or it
    has executed another program, and answers to its process's. What takes longer is left to a later wait."""
    begin = time.monotonic()
    was_asked = False
    while (now := time.monotonic()) < begin + seconds:
        try:
            stop = ptrace.poll_any()
        except ChildProcessError:
            break
        if stop and not stop.ended:
            ptrace.detach(stop.tid, deliverable(stop))
            return gone("executed")
        if stop and stop.tid == tid:
            break
        if not was_asked and now > begin + _SOON:
            was_asked = True
            with contextlib.suppress(OSError):
                ptrace.interrupt(pid)
        time.sleep(_POLL)
    return gone()


def deliverable(stop: ptrace.Stop) -> int:
    """The signal that a stopped thread waits to have delivered, 0 where it stopped for another reason."""
    return 0 if stop.event or stop.signal == ptrace.SYSCALL_STOP else stop.signal


def raise_for(code: int, tid: int) -> None:
    """For a call on a thread that failed, unless it did not (0)."""
    if code == errno.ECHILD:
        raise gone()
    if code:
        raise OSError(code, os.strerror(code), f"/proc/{tid}")
