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

STEPS = 34
"""Of an act on a spinning thread: seize, interrupt, wait, get, dispatch, rseq, write, peek, set, resume, wait, resume,
wait, get, set, zero, detach; each before and after. A blocked thread is not asked for its rseq."""


def make(die_at: int) -> Tracer:
    """A `Tracer` whose process dies at step `die_at` of each act that gets so far."""
    from hetmemd.kernel.root import Root
    from hetmemd.remote.client import Tracer

    class DyingTracer(Tracer):
        def _command(self) -> list[str]:
            return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(die_at)]

    return DyingTracer(Root(), limit_seconds=20.0)


def _main() -> None:
    die_at, parent, descriptor, daemon, prefix = sys.argv[1:]
    sys.path.insert(0, parent)
    from hetmemd.kernel import ptrace
    from hetmemd.remote import process

    step = -1

    def counted(function: Callable[..., Any], begins: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal step
            if begins:
                step = -1
            _step()
            result = function(*arguments)
            _step()
            return result

        def _step() -> None:
            nonlocal step
            step += 1
            if step == int(die_at):
                os.kill(os.getpid(), signal.SIGKILL)

        return call

    ptrace.seize = counted(ptrace.seize, begins=True)
    for name in ("interrupt", "wait_any", "peek", "resume_to_syscall", "detach", "syscall_user_dispatch", "rseq_area"):
        setattr(ptrace, name, counted(getattr(ptrace, name)))
    for name in ("get", "set"):
        setattr(ptrace.RegisterSet, name, counted(getattr(ptrace.RegisterSet, name)))
    os.pwrite = counted(os.pwrite)
    process.main(int(descriptor), int(daemon), prefix)


if __name__ == "__main__":
    _main()
