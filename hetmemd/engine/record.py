"""What the engine remembers of one process while it lives in a cgroup that a policy reaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hetmemd.engine.decide import Decision, Wanted
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import ProcessId
from hetmemd.policy.effective import Placement
from hetmemd.remote.result import Outcome
from hetmemd.report.snapshot import TaskView

if TYPE_CHECKING:  # importing it takes numpy
    from hetmemd.memory.sample import Settled

# Worst first: what a person must know of a process is its worst thread.
_SEVERITY = (
    Outcome.REFUSED,
    Outcome.UNSTEERABLE,
    Outcome.CONTESTED,
    Outcome.FOREIGN,
    Outcome.DEFERRED,
    Outcome.GONE,
    Outcome.APPLIED,
)


def worst(outcomes: Iterable[tuple[Outcome, str]]) -> tuple[Outcome, str]:
    """The outcome, with its reason, that speaks for a process. `GONE` where there is no thread left."""
    return min(outcomes, key=lambda pair: _SEVERITY.index(pair[0]), default=(Outcome.GONE, ""))


@dataclass(frozen=True, slots=True)
class Seen:
    """One thread as it was read last."""

    shown: Mempolicy
    """What the first region shows; and what is known to be the thread's own:"""
    now: Mempolicy
    allowed: frozenset[int]
    decision: Decision
    asked: Wanted

    @property
    def wanted(self) -> Mempolicy | None:
        return self.asked.policy


@dataclass(slots=True)
class Record:
    """One process. Times are the loop's monotonic seconds, except those that people are shown (`acted_at`,
    `measured_at`): wall clock."""

    process: ProcessId
    comm: str
    cgroup: str
    placement: Placement | None
    """What was wanted of it when it was last looked at; None where no policy reaches it."""
    outcome: Outcome = Outcome.DEFERRED
    reason: str = "not-yet"
    threads: int = 0
    now: Mempolicy | None = None
    allowed: frozenset[int] = frozenset()
    acted: str = ""
    acted_at: float = 0.0
    outcomes: frozenset[Outcome] = frozenset()
    """Of all its threads."""
    reasons: frozenset[str] = frozenset()
    refusal: str = ""
    """Why nothing at all may be done to it."""
    note: str = ""
    """What more there is to say of the reason."""
    carrying: int = 0
    """Threads that carry what they should not, and could not be rid of it."""
    contested: frozenset[int] = frozenset()
    """Threads that are, and were said to be."""
    own: Mempolicy | None = None
    """A policy of the application's own that a thread carries (T4)."""
    seen: dict[int, Seen] = field(default_factory=dict)
    """Threads that were settled when they were read last, by tid, the one read longest ago first."""
    generation: int = 0
    """Raised by everything that makes a pass over its pages obsolete."""
    bytes_by_node: Mapping[int, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Bytes that are held against no target, by reason: those of `Measurement.left_out`, and `swapped`."""
    distance: float | None = None
    measured_at: float = 0.0
    """When these were had, or a sample was as good (wall clock); 0 before the first time."""
    measure_at: float = 0.0
    """When the pages are next looked at."""
    idle_passes: int = 0
    """Passes in a row that moved nothing though the distance was too large: the next one backs off."""
    went_back: int = 0
    """Passes in a row after which the pages were moved back by somebody else (L6)."""
    left_misplaced: float | None = None
    """Bytes that lay wrong when the last pass ended."""
    last_total: int = 0
    """Bytes that were measured then, and"""
    last_moved: int = 0
    """bytes that it moved."""
    has_settled: bool = False
    """A pass went through it once, or it was as it should be: what is moved from then on is what holding it costs."""
    settled_since: float | None = None
    """Since when it has been within its tolerance; None where it was not at the last look."""
    settled: Settled | None = None
    """What samples are held against between two exact measurements; None where each is exact."""
    migrated: int = 0
    """Pages that anybody had moved on the machine when the last pass ended."""
    settled_for: Placement | None = None
    """With `existing = "once"`: the placement for which its pages were right once."""

    def renew(self) -> None:
        """Its address space or its placement is another: what was learned of its pages holds no more."""
        self.measure_at = 0.0
        self.idle_passes = 0
        self.went_back = 0
        self.left_misplaced = None
        self.settled_for = None
        self.has_settled = False
        self.settled = None
        self.settled_since = None
        self.generation += 1
        self.seen.clear()

    def forget_threads(self, tids: Iterable[int]) -> None:
        """They are read again at the next look."""
        for tid in tids:
            self.seen.pop(tid, None)

    def view(self) -> TaskView:
        return TaskView(
            pid=self.process.pid,
            start=self.process.start,
            comm=self.comm,
            outcome=self.outcome.value,
            reason=self.reason,
            threads=self.threads,
            policy_now=str(self.now) if self.now else "",
            bytes_by_node=dict(self.bytes_by_node),
            left_out=dict(self.left_out),
            distance=self.distance,
            measured_at=self.measured_at,
            last_action=self.acted,
            last_action_at=self.acted_at,
            note=self.note,
        )
