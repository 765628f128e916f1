"""A tracer that halts at a step of its act, until it is told to go on or has overstayed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from hetmemd.kernel import procfs
from hetmemd.remote.client import Tracer
from hetmemd.remote.result import Outcome, ThreadResult
from tests.machine import dying_tracer
from tests.machine.remote_target import BIND, ROOT, Acting, Target, wait_until

WAITID = "247 "  # arch/x86/entry/syscalls/syscall_64.tbl


def is_halted(tracer: Tracer) -> bool:
    return bool(tracer.pid) and procfs.stat(ROOT, tracer.pid or 0).state == "T"


def waits(tracer: Tracer) -> bool:
    """For the thread to stop."""
    return ROOT.read_text(f"/proc/{tracer.pid}/syscall").startswith(WAITID)


class Halted:
    def __init__(self, target: Target, tid: int, step: int, limit: float) -> None:
        """It is to give the thread BIND, and halts before that step of `dying_tracer`."""
        self._tracer = dying_tracer.make(step, signal.SIGSTOP, limit)
        self._results: list[ThreadResult] = []
        self._act = threading.Thread(target=self._acts, args=(target, tid))
        self._act.start()
        wait_until(self.is_halted)

    def _acts(self, target: Target, tid: int) -> None:
        with Acting() as acting, contextlib.closing(self._tracer):
            self._results.append(acting.with_tracer(self._tracer).one(target, BIND, tid))

    @property
    def pid(self) -> int:
        return self._tracer.pid or 0

    def is_halted(self) -> bool:
        return is_halted(self._tracer)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def waits(self) -> bool:
        return waits(self._tracer)

    def said(self) -> tuple[Outcome, str]:
        self._act.join()
        (result,) = self._results
        return result.outcome, result.reason
