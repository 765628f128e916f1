"""What came of an application to a task: the words of the rules, and the record of one thread."""

from __future__ import annotations

import enum
from typing import NamedTuple

from hetmemd.kernel.mempolicy import Mempolicy


class Outcome(enum.StrEnum):
    APPLIED = "applied"
    """The kernel says that the thread has the policy."""
    DEFERRED = "deferred"
    """Not now: acting would risk the task, or it cannot stop; looked at again."""
    FOREIGN = "foreign"
    """The application set a policy itself, and it is respected (T4)."""
    CONTESTED = "contested"
    """The application sets its own policy again each time (T4)."""
    UNSTEERABLE = "unsteerable"
    """Nothing can be called in this task: a kernel worker, too little vdso padding, syscall user dispatch."""
    REFUSED = "refused"
    """The kernel, a right or a rule said no."""
    GONE = "gone"
    """The task ended or executed another program meanwhile."""


class ThreadResult(NamedTuple):
    """One thread's record, for the journal, the ledger and the metrics."""

    tid: int
    outcome: Outcome
    reason: str
    """A short stable word or phrase in lower case, `frozen`, `traced`, `seccomp`, empty when applied."""
    errno: int = 0
    before: Mempolicy | None = None
    after: Mempolicy | None = None
    pause_ns: int = 0
    """From the interruption to the detachment of a thread that made its calls; else 0."""
    errnos: tuple[int, ...] = ()
    """Where several calls were asked for: of each that was made, in order, 0 if it succeeded."""
    stops: int = 0
    """How often the thread was stopped, whatever came of it; at least 1 where it may have been (the tracer died)."""
