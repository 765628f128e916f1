"""What has been done since the start: the counters and histograms that the engine feeds and a scrape reads.

Safe to call from the loop, the mover thread and the tracer's callbacks at once.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hetmemd.remote.result import Outcome

PAUSE_BUCKETS = (10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3, 0.1, 0.5, 2.0)
"""Seconds. A stop costs tens of microseconds; 2 s is the tracer's time limit."""
MOVE_BUCKETS = (1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds from a task's arrival in a cgroup to its policy. Scans repair a loss within their interval, 30 s."""

_MOST_REASONS = 100
"""Label values that come from elsewhere are few and fixed; should one ever hold a number, it must not grow for ever."""

_MOST_CGROUPS = 4096

OTHER = "other"


class Distribution:
    """A histogram: how many observations fell at or below each bound, and their sum."""

    __slots__ = ("_counts", "bounds", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        # Clocks of two processes can differ by a tick; a negative duration would break the sum.
        value = max(value, 0.0)
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[float, int]]:
        """(bound, observations at or below it); the last bound is infinite."""
        running, pairs = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self._counts, strict=True):
            running += count
            pairs.append((bound, running))
        return pairs


@dataclass(frozen=True, slots=True)
class Totals:
    """A tally at one moment. Keys of the mappings are label values, in the order of the field's name."""

    applications: int
    not_applied_by_outcome_reason: dict[tuple[str, str], int]
    pauses: list[tuple[float, int]]
    pause_sum: float
    cgroup_moves: list[tuple[float, int]]
    cgroup_move_sum: float
    pages_by_source_target: dict[tuple[int, int], int]
    bytes_by_source_target: dict[tuple[int, int], int]
    failed_pages_by_reason: dict[str, int]
    moved_by_cgroup_work: dict[tuple[str, str], int]
    events_by_source: dict[str, int]
    losses_by_source: dict[str, int]
    scans: int
    scan_seconds: float
    last_scan_seconds: float
    tracer_restarts: int
    regions_bound: int
    regions_undone: int
    failed_regions_by_reason: dict[str, int]
    region_delays: list[tuple[float, int]]
    region_delay_sum: float
    region_reads: int
    region_read_seconds: float
    reloads: int
    failed_reloads: int


class Tally:
    """Counts since the start of the daemon. Every method is short and takes one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._applications = 0
        self._not_applied: Counter[tuple[str, str]] = Counter()
        self._pauses = Distribution(PAUSE_BUCKETS)
        self._cgroup_moves = Distribution(MOVE_BUCKETS)
        self._pages: Counter[tuple[int, int]] = Counter()
        self._bytes: Counter[tuple[int, int]] = Counter()
        self._failed_pages: Counter[str] = Counter()
        self._cgroup_bytes: dict[tuple[str, str], int] = {}
        self._events: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._scans = 0
        self._scan_seconds = 0.0
        self._last_scan = 0.0
        self._tracer_restarts = 0
        self._regions_bound = 0
        self._regions_undone = 0
        self._failed_regions: Counter[str] = Counter()
        self._region_delays = Distribution(MOVE_BUCKETS)
        self._region_reads = 0
        self._region_read_seconds = 0.0
        self._reloads = 0
        self._failed_reloads = 0

    def nodes(self, nodes: Iterable[int]) -> None:
        """Says which nodes there are, so that every pair is counted from 0 and a first move is seen as an increase."""
        known = sorted(set(nodes))
        with self._lock:
            for source in known:
                for target in known:
                    if source != target:
                        self._pages[source, target] += 0
                        self._bytes[source, target] += 0

    def application(self, outcome: Outcome | str, reason: str = "") -> None:
        """One thread was to be given a policy, and this came of it."""
        with self._lock:
            self._applications += 1
            if outcome != Outcome.APPLIED:
                key = (str(outcome), reason)
                if key not in self._not_applied and len(self._not_applied) >= _MOST_REASONS:
                    key = (str(outcome), OTHER)
                self._not_applied[key] += 1

    def pause(self, seconds: float) -> None:
        """One thread was stopped for that long."""
        with self._lock:
            self._pauses.observe(seconds)

    def regions_bound(self, bound: int, undone: int, failed: Mapping[str, int]) -> None:
        """Ranges of memory that were given a policy or rid of one, and those that were to be and are not, by reason."""
        with self._lock:
            self._regions_bound += bound
            self._regions_undone += undone
            for reason, count in failed.items():
                known = reason in self._failed_regions or len(self._failed_regions) < _MOST_REASONS
                self._failed_regions[reason if known else OTHER] += count

    def region_delay(self, seconds: float) -> None:
        """New regions were found, so long after the last reading in which they were not."""
        with self._lock:
            self._region_delays.observe(seconds)

    def region_read(self, seconds: float) -> None:
        """The regions of one process were read, which took that long."""
        with self._lock:
            self._region_reads += 1
            self._region_read_seconds += seconds

    def cgroup_move(self, seconds: float) -> None:
        """From the first word of a task in a cgroup to the policy in force in all its threads."""
        with self._lock:
            self._cgroup_moves.observe(seconds)

    def pages_moved(self, source: int, target: int, pages: int, size: int) -> None:
        """`pages` of `size` bytes in all were moved from one node to another."""
        with self._lock:
            self._pages[source, target] += pages
            self._bytes[source, target] += size

    def pages_failed(self, reason: str, pages: int = 1) -> None:
        with self._lock:
            if reason not in self._failed_pages and len(self._failed_pages) >= _MOST_REASONS:
                reason = OTHER
            self._failed_pages[reason] += pages

    def cgroup_moved(self, cgroup: str, work: str, size: int) -> None:
        """`size` bytes were moved for a process of the cgroup, `converging` or `holding`. The cgroups for which nothing
        was moved for longest are forgotten where there are too many: they come and go."""
        if not size:
            return
        with self._lock:
            self._cgroup_bytes[cgroup, work] = self._cgroup_bytes.pop((cgroup, work), 0) + size
            while len(self._cgroup_bytes) > _MOST_CGROUPS:
                del self._cgroup_bytes[next(iter(self._cgroup_bytes))]

    def event(self, source: str, count: int = 1) -> None:
        with self._lock:
            self._events[source] += count

    def lost(self, source: str, count: int = 1) -> None:
        with self._lock:
            self._losses[source] += count

    def scan(self, seconds: float) -> None:
        """One scan of the whole tree took that long."""
        with self._lock:
            self._scans += 1
            self._scan_seconds += seconds
            self._last_scan = seconds

    def tracer_restart(self, count: int = 1) -> None:
        with self._lock:
            self._tracer_restarts += count

    def reload(self, succeeded: bool) -> None:
        """The settings were read again; `succeeded` is False where the old ones stayed."""
        with self._lock:
            self._reloads += 1
            self._failed_reloads += not succeeded

    def totals(self) -> Totals:
        """All of it at one moment."""
        with self._lock:
            return Totals(
                applications=self._applications,
                not_applied_by_outcome_reason=dict(self._not_applied),
                pauses=self._pauses.cumulative(),
                pause_sum=self._pauses.total,
                cgroup_moves=self._cgroup_moves.cumulative(),
                cgroup_move_sum=self._cgroup_moves.total,
                pages_by_source_target=dict(self._pages),
                bytes_by_source_target=dict(self._bytes),
                failed_pages_by_reason=dict(self._failed_pages),
                moved_by_cgroup_work=dict(self._cgroup_bytes),
                events_by_source=dict(self._events),
                losses_by_source=dict(self._losses),
                scans=self._scans,
                scan_seconds=self._scan_seconds,
                last_scan_seconds=self._last_scan,
                tracer_restarts=self._tracer_restarts,
                regions_bound=self._regions_bound,
                regions_undone=self._regions_undone,
                failed_regions_by_reason=dict(self._failed_regions),
                region_delays=self._region_delays.cumulative(),
                region_delay_sum=self._region_delays.total,
                region_reads=self._region_reads,
                region_read_seconds=self._region_read_seconds,
                reloads=self._reloads,
                failed_reloads=self._failed_reloads,
            )
