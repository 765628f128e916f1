"""The state of the daemon at one moment, as the engine publishes it and everything that reports reads it.

Plain immutable values: a scrape or a `status` never waits for the engine and never sees half of a pass.
Sizes are bytes, times are seconds (wall clock, `time.time()`), nodes are node ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hetmemd.machine.movers import Mover
from hetmemd.policy.effective import Effective


@dataclass(frozen=True, slots=True)
class TaskView:
    """One process in a policied cgroup."""

    pid: int
    start: int
    comm: str
    outcome: str
    """Its worst thread's `Outcome` value."""
    reason: str
    threads: int
    policy_now: str
    """What the kernel shows for the thread group leader, as numa_maps writes it."""
    bytes_by_node: Mapping[int, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Bytes that are held against no target, by the reason why."""
    distance: float | None = None
    """Total variation, 0 to 1, between where the pages are and where they should be; None where not measured."""
    last_action: str = ""
    """One line: what was done last, with its errno."""
    last_action_at: float = 0.0
    note: str = ""
    """One sentence on the reason, where there is more to say."""
    measured_at: float = 0.0
    """When its memory was measured last, all of it or a sample; 0 before the first time."""


@dataclass(frozen=True, slots=True)
class CgroupView:
    """One cgroup that a policy reaches."""

    effective: Effective
    tasks: tuple[TaskView, ...]
    bytes_by_node: Mapping[int, int]
    target_shares: Mapping[int, float]
    distance: float | None
    """None where nothing was measured yet, or there is no target."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Bytes of its processes that are held against no target, by the reason why."""
    measured_at: float = 0.0
    """Since when each of its processes was measured; 0 while one was not yet, or there is none."""
    notes: tuple[str, ...] = ()
    """What there is to say of where its pages are."""


@dataclass(frozen=True, slots=True)
class FileView:
    """One policy file."""

    path: str
    state: str
    """`in-force`, `last-good` (broken, its last good version holds), `rejected` (never was good), `masked`, or `mask`
    (a link to /dev/null)."""
    faults: tuple[str, ...]
    """`file:line: message`, each with a hint where there is one."""


@dataclass(frozen=True, slots=True)
class SourceView:
    """One source of events."""

    name: str
    """`inotify-cgroup`, `inotify-files`, `proc-connector`."""
    up: bool
    events: int
    losses: int
    note: str
    """Why it is down or weaker than it could be, empty otherwise."""


@dataclass(frozen=True, slots=True)
class HoldView:
    """Something that was stopped until somebody releases it."""

    kind: str
    """`executable` (a process that runs it died soon after an act), `policy` (one of its first tasks did), `cgroup` or
    `process` (hetmemctl undo)."""
    what: str
    """Its name for `hetmemctl release`."""
    why: str
    since: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    at: float
    version: str
    started_at: float
    observing: bool
    """The kill switch is on: nothing is applied or moved."""
    cgroups: tuple[CgroupView, ...]
    files: tuple[FileView, ...]
    sources: tuple[SourceView, ...]
    notes: tuple[str, ...]
    """What this machine cannot do, each with the way round it that is taken (L5)."""
    kernel_weights: Mapping[int, int] | None
    """The kernel's global weighted-interleave table, None before 6.9."""
    scans: int
    last_scan_seconds: float
    movers: tuple[Mover, ...] = ()
    """Who else may move pages on this machine (L6), whether on or not."""
    switched_by: str = ""
    """What turned the kill switch on: a setting or a file."""
    holds: tuple[HoldView, ...] = ()
    crashes: int = 0
    """Processes that died of a fatal signal soon after an act, since the start."""
