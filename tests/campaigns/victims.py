"""The programs that check themselves all the time, for tracers to act on and to die over."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hetmemd.remote.result import Outcome
from tests.campaigns.watched import Watched
from tests.machine.remote_target import INTERLEAVE, Acting, Target, build


class Kind(NamedTuple):
    program: str
    arguments: tuple[str, ...] = ()
    ends_by: signal.Signals | None = None
    """None: at the end of its input."""
    is_dear: bool = False
    is_stopped: bool = False
    """By SIGSTOP, all the time but for the looks at it."""
    is_killed: bool = False
    """By its seccomp filter, if it makes one of our calls while nobody suspends that."""


KINDS: Mapping[str, Kind] = {
    "spin": Kind("exact", ("spin",), ends_by=signal.SIGTERM, is_dear=True),
    "wait": Kind("exact", ("syscall",), ends_by=signal.SIGTERM),
    "stopped": Kind("exact", ("spin",), ends_by=signal.SIGTERM, is_stopped=True),
    "confined": Kind("exact", ("syscall", "confined"), ends_by=signal.SIGTERM),
    "killed": Kind("exact", ("syscall", "killed"), ends_by=signal.SIGTERM, is_killed=True),
    "rseq": Kind("rseq", is_dear=True),
    "steady": Kind("steady"),
    "thirtytwo": Kind("thirtytwo"),
}


class Victim:
    """One that runs. With `with`, for it is killed at the end."""

    def __init__(self, folder: Path, name: str) -> None:
        self.kind = KINDS[name]
        program = build(folder, self.kind.program)
        self.descriptor = os.memfd_create("hetmemd-report")
        os.truncate(self.descriptor, mmap.PAGESIZE)
        arguments = (str(self.descriptor),) if name == "thirtytwo" else self.kind.arguments
        # It is to die with whoever watches it. The C library's own rseq is switched off: the one program that needs one
        # makes its own.
        self.target = Target(
            ["setpriv", "--pdeathsig", "KILL", program, *arguments],
            environment={"HETMEMD_REPORT": str(self.descriptor), "GLIBC_TUNABLES": "glibc.pthread.rseq=0"},
            descriptors=(self.descriptor,),
        )
        self.target.expect("ready")
        self.watched = Watched(name, self.target.identity, self.descriptor, *self.traits)
        if self.kind.is_stopped:
            self.watched.stop()

    @property
    def traits(self) -> tuple[bool, bool, bool]:
        """What `Watched` has to know of it."""
        return self.kind.is_dear, self.kind.is_stopped, self.kind.is_killed

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        self.target.__exit__(None, None, None)
        os.close(self.descriptor)

    def judge(self, acting: Acting) -> str:
        """What it says at its end, after one more act by a tracer that lives; empty where all is well."""
        self.watched.work(True)
        try:
            for result in acting.apply(self.target, INTERLEAVE):
                # A storm of signals may keep a thread from being called, but nothing that the dead left may.
                if result.outcome is not Outcome.APPLIED and result.reason != "signals":
                    return f"at the end {result}"
            if self.kind.is_stopped:
                os.kill(self.target.pid, signal.SIGCONT)
            if self.kind.ends_by:
                os.kill(self.target.pid, self.kind.ends_by)
            told = self.target.finish().strip()
        except (AssertionError, OSError) as error:
            return repr(error)
        words = told.split()
        numbers = dict(zip(words[::2], words[1::2], strict=False))
        found = {key: numbers.get(key, "0") for key in ("bad", "short", "lost", "mismatched", "broken", "misordered")}
        if any(number != "0" for number in found.values()) or (len(words) == 1 and words != ["alive"]):
            return told
        return ""
