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
    options: tuple[str, ...] = ()
    ends_by: signal.Signals | None = None
    """None: at the end of its input."""
    is_dear: bool = False


KINDS: Mapping[str, Kind] = {
    "spin": Kind("exact", ("spin",), ends_by=signal.SIGTERM, is_dear=True),
    "wait": Kind("exact", ("syscall",), ends_by=signal.SIGTERM),
    # A filter that kills is another matter: a tracer that dies while it is suspended leaves the call to it.
    "confined": Kind("exact", ("syscall", "confined"), ends_by=signal.SIGTERM),
    "rseq": Kind("rseq", is_dear=True),
    "steady": Kind("steady"),
    "thirtytwo": Kind(
        "thirtytwo",
        options=("-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-fno-stack-protector"),
    ),
}


class Victim:
    """One that runs. With `with`, for it is killed at the end."""

    def __init__(self, folder: Path, name: str) -> None:
        self.kind = KINDS[name]
        program = build(folder, self.kind.program, *self.kind.options)
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
        self.watched = Watched(name, self.target.identity, self.descriptor, self.kind.is_dear)

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
