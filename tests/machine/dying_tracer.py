"""A tracer that dies by SIGKILL at a certain step of an act, so that every step can be shown to be safe.

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

STEPS = 42
"""Of an act on a spinning thread: seize, interrupt, wait, get, dispatch, rseq and its content, options, write, peek,
set, resume, wait, get, resume, wait, get, set, zero, detach, clock; each before and after. A blocked thread is not
asked for its rseq, which are 4 steps less."""


def make(die_at: int, by: signal.Signals = signal.SIGKILL, limit_seconds: float = 20.0) -> Tracer:
    """A `Tracer` whose process dies at step `die_at` of each act that gets so far, or hangs there, by SIGSTOP."""
    from hetmemd.kernel.root import Root
    from hetmemd.remote.client import Tracer

    class DyingTracer(Tracer):
        def _command(self) -> list[str]:
            return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(die_at), str(int(by))]

    return DyingTracer(Root(), limit_seconds)


def install(reached: Callable[[int], None]) -> None:
    """In this process, call `reached` at each step of each act, with its number."""
    from hetmemd.kernel import ptrace
    from hetmemd.kernel.batch import Batch
    from hetmemd.remote import course

    step = -1

    def counted(function: Callable[..., Any], begins: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal step
            step = 0 if begins else step + 1
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
                    step += 1
                    reached(step)
                if not super().run(index, 1):
                    return index - first
                if self.is_call(index):
                    step += 1
                    reached(step)
            return count

    setattr(course, "Batch", OneByOne)  # noqa: B010 (mypy: assigning to a type)
    for name in ("seize", "interrupt", "wait_any", "peek", "resume_to_syscall", "detach", "syscall_user_dispatch"):
        setattr(ptrace, name, counted(getattr(ptrace, name), begins=name == "seize"))
    ptrace.rseq_area = counted(ptrace.rseq_area)
    for name in ("get", "set"):
        setattr(ptrace.RegisterSet, name, counted(getattr(ptrace.RegisterSet, name)))
    os.pwrite = counted(os.pwrite)


def _main() -> None:
    die_at, by, parent, descriptor, board, daemon, prefix, limit = sys.argv[1:]
    sys.path.insert(0, parent)
    from hetmemd.remote import process

    def reached(step: int) -> None:
        if step == int(die_at):
            os.kill(os.getpid(), int(by))

    install(reached)
    process.main(int(descriptor), int(board), int(daemon), prefix, float(limit))


if __name__ == "__main__":
    _main()
