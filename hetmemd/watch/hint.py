"""What an event comes to: where to look. A hint may be late, doubled or about something that is gone; never a fact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class CgroupHint:
    """Look at this cgroup: it was made, or tasks may have come or gone."""

    path: str


@dataclass(frozen=True, slots=True)
class CgroupGone:
    """A cgroup of this path was removed; another one may stand there by now."""

    path: str


@dataclass(frozen=True, slots=True)
class TaskHint:
    """A process was forked, executed another program or ended.

    Threads are not told: they inherit the policy of the thread that made them. `exit` is the end of the thread group
    leader, whose other threads may go on.
    """

    pid: int
    tid: int
    why: Literal["fork", "exec", "exit"]
    parent: int
    """The pid of the process that forked it; for `exec` and for kernels before 4.18 on `exit`: 0."""


@dataclass(frozen=True, slots=True)
class CrashHint:
    """A process was ended by a signal that the kernel sends for what a task did, such as SIGSEGV.

    Told once for each of its threads that ended so; all of them give the same signal.
    """

    pid: int
    signal: int
    dumped: bool
    """A core dump was written."""


@dataclass(frozen=True, slots=True)
class DumpHint:
    """A process is about to end by a signal that asks for a core dump: its end is told when that is written, which
    takes minutes for a large one."""

    pid: int


@dataclass(frozen=True, slots=True)
class FilesHint:
    """A policy file, the settings or the kill switch changed, and the change is complete."""


@dataclass(frozen=True, slots=True)
class CpusetHint:
    """The CPUs or nodes of this cgroup and of all below it may have changed."""

    path: str


@dataclass(frozen=True, slots=True)
class RegionsHint:
    """A process mapped memory, or changed what may be done with a mapping."""

    pid: int
    at: float
    """When, by the loop's clock (CLOCK_MONOTONIC, seconds): the first time that was not told yet."""


@dataclass(frozen=True, slots=True)
class LostHint:
    """Events were lost: only a scan of everything tells what happened."""

    source: str


Hint = CgroupHint | CgroupGone | TaskHint | DumpHint | CrashHint | FilesHint | CpusetHint | RegionsHint | LostHint
