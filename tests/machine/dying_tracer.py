"""A tracer that dies by SIGKILL at a certain step of an act, so that every step can be shown to be safe; or that halts
there; or sees to it that just then its target is sent a signal.

Run as a program in place of the real tracer process; `make` gives a client that does. Steps are counted from 0: before
and after each system call that has to do with the tracee, beginning with PTRACE_SEIZE.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetmemd.remote.client import Tracer

_TKILL = 200  # arch/x86/entry/syscalls/syscall_64.tbl

STEPS = 52
"""Of an act on a spinning thread: seize, look, clock, interrupt, wait, get, dispatch, rseq and its content, options,
write, peek, set, resume, wait, get, resume, wait, get, set, zero, detach, clock, open, read, close; each before and
after. A blocked thread is not asked for its rseq, which are 4 steps less."""

SEIZED, STOPPED, SENT = 1, 10, 24
"""Of these: it is seized; it has stopped; it is on its way into the stub."""


def make(step: int, number: int = signal.SIGKILL, limit_seconds: float = 20.0, thread: int = 0) -> Tracer:
    """A `Tracer` whose process dies at this step of the first act that gets so far, or halts there, by SIGSTOP.

    With `thread`, the signal is sent to that thread instead, in every act that gets so far.
    """
    from hetmemd.kernel.root import Root
    from hetmemd.remote.client import Tracer

    class DyingTracer(Tracer):
        def _command(self) -> list[str]:
            return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(step), str(int(number)), str(thread)]

    return DyingTracer(Root(), limit_seconds)


def install(reached: Callable[[int], None]) -> None:
    """In this process, call `reached` at each step of each act, with its number."""
    from hetmemd.kernel import ptrace
    from hetmemd.kernel.batch import WORDS, Batch
    from hetmemd.remote import course

    step = -1

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal step
            step += 1
            reached(step)
            result = function(*arguments, **named)
            step += 1
            reached(step)
            return result

        return call

    class OneByOne(Batch):
        def run(self, first: int, count: int) -> int:
            nonlocal step
            for index in range(first, first + count):
                if self.is_call(index):
                    if self.words[index * WORDS + 1] == ptrace.SEIZE:
                        step = -1
                    step += 1
                    reached(step)
                if not super().run(index, 1):
                    return index - first
                if self.is_call(index):
                    step += 1
                    reached(step)
            return count

    setattr(course, "Batch", OneByOne)  # noqa: B010 (mypy: assigning to a type)
    for name in ("interrupt", "wait_any", "peek", "resume_to_syscall", "detach", "syscall_user_dispatch"):
        setattr(ptrace, name, counted(getattr(ptrace, name)))
    ptrace.rseq_area = counted(ptrace.rseq_area)
    for name in ("get", "set"):
        setattr(ptrace.RegisterSet, name, counted(getattr(ptrace.RegisterSet, name)))
    os.pwrite = counted(os.pwrite)


def _main() -> None:
    wanted, number, thread, parent, descriptor, board, daemon, prefix, limit = sys.argv[1:]
    sys.path.insert(0, parent)
    from hetmemd.kernel import libc
    from hetmemd.remote import process

    is_due = True

    def reached(step: int) -> None:
        nonlocal is_due
        if step == int(wanted) and int(thread):
            libc.syscall(_TKILL, int(thread), int(number))
        elif step == int(wanted) and is_due:
            is_due = False
            os.kill(os.getpid(), int(number))

    install(reached)
    process.main(int(descriptor), int(board), int(daemon), prefix, float(limit))


if __name__ == "__main__":
    _main()
