"""The metrics: one table of declarations, and the collectors that fill it freshly at each scrape.

`python -m hetmemd.report.metrics --table` prints the table for the README from the same declarations.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import hetmemd
from hetmemd.kernel import nodelist
from hetmemd.policy.faults import printable
from hetmemd.remote.result import Outcome
from hetmemd.report.publish import Publisher
from hetmemd.report.snapshot import CgroupView, Snapshot
from hetmemd.report.tally import OTHER, Tally, Totals

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Declaration:
    """One metric: what the README promises and what a scrape gives."""

    name: str
    kind: str
    """`gauge`, `counter` or `histogram`."""
    labels: tuple[str, ...]
    meaning: str
    """One sentence, the HELP text."""

    def family(self) -> Any:
        """An empty family of this metric, for prometheus-client 0.16 and later.

        Families that are made here at each scrape have no `_created` series: only metric objects have.
        """
        families: dict[str, Callable[..., Metric]] = {
            "gauge": GaugeMetricFamily,
            "counter": CounterMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        return families[self.kind](self.name, self.meaning, labels=self.labels)


def _declare(*entries: tuple[str, str, str, str]) -> dict[str, Declaration]:
    return {
        name: Declaration(f"hetmemd_{name}", kind, tuple(labels.split()), meaning)
        for name, kind, labels, meaning in entries
    }


DECLARATIONS = _declare(
    # name, kind, labels, meaning
    ("build_info", "gauge", "version python", "Always 1; the labels say what runs."),
    ("start_timestamp_seconds", "gauge", "", "When the daemon started, seconds since the epoch."),
    ("snapshot_timestamp_seconds", "gauge", "", "When the state shown here was published, seconds since the epoch."),
    ("observing", "gauge", "", "1 while the kill switch is on and nothing is applied or moved, else 0."),
    (
        "held",
        "gauge",
        "kind",
        "What is held until hetmemctl release: executables and policies after a crash, cgroups and processes by undo.",
    ),
    (
        "crashes_after_act_total",
        "counter",
        "",
        "Processes that died of SIGSEGV, SIGBUS, SIGILL, SIGSYS or SIGTRAP within crash_window of an act.",
    ),
    ("limitations", "gauge", "", "How many things this machine cannot do; hetmemctl status names them."),
    (
        "other_mover",
        "gauge",
        "mover",
        "Others that move pages: 1 where the kernel's switch is on, 0 where it is off; absent where that is not known.",
    ),
    ("cgroups", "gauge", "state", "Cgroups that a policy reaches, by state."),
    (
        "cgroups_left_out",
        "gauge",
        "",
        "Cgroups that a policy reaches and cgroup_label_limit keeps out of these metrics.",
    ),
    (
        "cgroup_policy_info",
        "gauge",
        "cgroup state mode nodes file",
        "Always 1; the labels say which policy holds for the cgroup, and the file it stands in.",
    ),
    ("cgroup_memory_bytes", "gauge", "cgroup node", "Memory of the cgroup's processes on each node."),
    (
        "cgroup_target_ratio",
        "gauge",
        "cgroup node",
        "The share of the cgroup's memory that should be on each node, 0 to 1.",
    ),
    (
        "cgroup_distance_ratio",
        "gauge",
        "cgroup",
        "Distance from the target shares: half the sum of the differences, 0 (there) to 1 (all elsewhere).",
    ),
    (
        "cgroup_left_out_bytes",
        "gauge",
        "cgroup reason",
        "Memory of the cgroup's processes that is held against no target and not moved, by reason.",
    ),
    (
        "cgroup_moved_bytes_total",
        "counter",
        "cgroup work",
        "Bytes moved for the cgroup's processes: converging until a pass went through each once, holding after.",
    ),
    ("cgroup_tasks", "gauge", "cgroup outcome", "Processes in the cgroup, each by the outcome of its worst thread."),
    ("applications_total", "counter", "", "Threads that were to be given a policy."),
    (
        "application_failures_total",
        "counter",
        "outcome reason",
        "Threads that were to be given a policy and do not have it, by what came of it and why.",
    ),
    ("pause_seconds", "histogram", "", "How long a thread was stopped to be given a policy."),
    (
        "cgroup_move_to_policy_seconds",
        "histogram",
        "",
        "From the first word of a task in a cgroup to the policy in force in all of its threads.",
    ),
    ("regions_bound_total", "counter", "", "Ranges of memory that were given a policy of their own."),
    ("regions_undone_total", "counter", "", "Ranges of memory whose own policy was taken away again."),
    ("region_failures_total", "counter", "reason", "Ranges that were to be bound or undone and were not, by reason."),
    (
        "region_delay_seconds",
        "histogram",
        "",
        "For regions that came later: from the last reading in which they were not, to the one that found them.",
    ),
    ("region_reads_total", "counter", "", "Readings of a process's regions."),
    ("region_read_seconds_total", "counter", "", "Processor time of readings of regions."),
    ("moved_pages_total", "counter", "source_node target_node", "Pages moved between nodes, in base pages."),
    ("moved_bytes_total", "counter", "source_node target_node", "Bytes moved between nodes."),
    ("page_move_failures_total", "counter", "reason", "Pages that were to be moved and stayed, by reason."),
    ("events_total", "counter", "source", "Events received, by source."),
    (
        "event_losses_total",
        "counter",
        "source",
        "Times that events were lost; a scan, or looks that come in any case (perf-mmap), make up for it.",
    ),
    ("source_up", "gauge", "source", "1 where the source of events works, 0 where scans stand in for it."),
    ("scans_total", "counter", "", "Scans of the whole tree."),
    ("scan_seconds_total", "counter", "", "Time spent in scans of the whole tree."),
    ("last_scan_duration_seconds", "gauge", "", "How long the last scan of the whole tree took."),
    ("tracer_restarts_total", "counter", "", "Times that the tracer process overstayed or died and was started again."),
    (
        "policy_files",
        "gauge",
        "state",
        "Policy files: in-force, last-good (broken, its last good version holds), rejected, masked, mask.",
    ),
    ("policy_file_faults", "gauge", "file", "Faults of each policy file that is broken."),
    ("reloads_total", "counter", "", "Times that the settings were read again."),
    ("reload_failures_total", "counter", "", "Times that changed settings were refused and the old ones stayed."),
    ("kernel_weight", "gauge", "node", "The kernel's own weight of each node for weighted interleave."),
    ("scrape_collector_success", "gauge", "collector", "1 where this part of the scrape worked, 0 where it failed."),
    ("scrape_collector_duration_seconds", "gauge", "collector", "How long this part of the scrape took."),
)

STATES = ("active", "blocked", "conflict", "default")
HELD = ("executable", "policy", "cgroup", "process")
FILE_STATES = ("in-force", "last-good", "rejected", "masked", "mask")
FAILURES: dict[Outcome, tuple[str, ...]] = {
    Outcome.DEFERRED: (
        "changed",
        "closed",
        "frozen",
        "mmap-lock",
        "new-threads",
        "observe",
        "shared-memory",
        "short-io",
        "signals",
        "sigsys-blocked",
        "stop-rate",
        "stub",
        "suspect",
        "timeout",
        "traced",
        "tracer-died",
        "trial",
        "uninterruptible",
    ),
    Outcome.FOREIGN: (),
    Outcome.CONTESTED: ("set-again",),
    Outcome.UNSTEERABLE: (
        "architecture",
        "compat",
        "io-worker",
        "kernel-thread",
        "stub-fault",
        "syscall-user-dispatch",
        "tampered",
        "vdso",
    ),
    Outcome.REFUSED: (
        "crashed",
        "denied-executable",
        "denied-user",
        "headroom",
        "init",
        "internal-error",
        "kcmp",
        "no-huge-pages",
        "permission",
        "policy-held",
        "proc-mem",
        "readback",
        "seccomp",
        "self",
        "unreadable",
        "yama",
    ),
    Outcome.GONE: ("executed", "exited"),
}
"""Why an application can fail, as `remote/` says it: each is counted from 0, so that its first is an increase."""
REGION_FAILURES = ("cannot allocate memory", "headroom", "invalid argument", "observe", "timeout", "young")
"""Why a region can stay as it is: words of an application's failures, or the kernel's."""
PAGE_FAILURES = ("busy", "shared", "not-present", "node-full", "no-memory", "cpuset", "gone")
"""Why a page can stay where it is, as `memory.moving` says it; spelt here, since importing that takes numpy."""
LEFT_OUT = ("bound", "hugetlb", "shared", "shm", "special", "swapped", "unasked")
"""Why memory is held against no target, as `memory.measure` says it."""
WORK = ("converging", "holding")
SOURCES = ("inotify-cgroup", "inotify-files", "proc-connector")


@dataclass(frozen=True, slots=True)
class Moment:
    """What one scrape sees. Collected once, so that its parts agree."""

    snapshot: Snapshot | None
    totals: Totals
    label_limit: int


Sample = tuple[str, Sequence[object], float]
"""Name without the prefix, label values, value."""


def _build(moment: Moment) -> Iterator[Sample]:
    yield "build_info", (hetmemd.__version__, platform.python_version()), 1
    if moment.snapshot:
        yield "start_timestamp_seconds", (), moment.snapshot.started_at
        yield "snapshot_timestamp_seconds", (), moment.snapshot.at


def _machine(moment: Moment) -> Iterator[Sample]:
    if moment.snapshot:
        yield "observing", (), moment.snapshot.observing
        for kind in HELD:
            yield "held", (kind,), sum(hold.kind == kind for hold in moment.snapshot.holds)
        yield "crashes_after_act_total", (), moment.snapshot.crashes
        yield "limitations", (), len(moment.snapshot.notes)
        for mover in moment.snapshot.movers:
            if mover.is_on is not None:
                yield "other_mover", (mover.name,), mover.is_on
        for node, weight in sorted((moment.snapshot.kernel_weights or {}).items()):
            yield "kernel_weight", (node,), weight


def named_cgroups(snapshot: Snapshot, limit: int) -> tuple[CgroupView, ...]:
    """The cgroups that get series of their own: owners of a policy first, then by path.

    The order depends on nothing that changes by itself, so that no series comes and goes from scrape to scrape.
    """
    owned_first = sorted(snapshot.cgroups, key=lambda view: (view.effective.own is None, view.effective.cgroup))
    return tuple(owned_first[:limit])


def _cgroups(moment: Moment) -> Iterator[Sample]:
    snapshot = moment.snapshot
    if not snapshot:
        return
    for state in STATES:
        yield "cgroups", (state,), sum(view.effective.state == state for view in snapshot.cgroups)
    named = named_cgroups(snapshot, moment.label_limit)
    yield "cgroups_left_out", (), len(snapshot.cgroups) - len(named)
    for view in named:
        effective = view.effective
        cgroup = effective.cgroup
        policy = effective.placement.mempolicy if effective.placement else None
        source = effective.own or effective.inherited_from
        yield (
            "cgroup_policy_info",
            (
                cgroup,
                effective.state,
                policy.mode.word if policy else "",
                nodelist.format_list(policy.nodes) if policy else "",
                source.file if source else "",
            ),
            1,
        )
        for node, size in sorted(view.bytes_by_node.items()):
            yield "cgroup_memory_bytes", (cgroup, node), size
        for node, share in sorted(view.target_shares.items()):
            yield "cgroup_target_ratio", (cgroup, node), share
        if view.distance is not None:
            yield "cgroup_distance_ratio", (cgroup,), view.distance
        for reason, size in sorted((dict.fromkeys(LEFT_OUT, 0) | dict(view.left_out)).items()):
            yield "cgroup_left_out_bytes", (cgroup, reason), size
        for work in WORK:
            yield "cgroup_moved_bytes_total", (cgroup, work), moment.totals.moved_by_cgroup_work.get((cgroup, work), 0)
        for outcome in Outcome:
            yield "cgroup_tasks", (cgroup, outcome), sum(task.outcome == outcome for task in view.tasks)


def _applications(moment: Moment) -> Iterator[Sample]:
    totals = moment.totals
    yield "applications_total", (), totals.applications
    failures = {(str(outcome), reason): 0 for outcome, reasons in FAILURES.items() for reason in (*reasons, OTHER)}
    for key, count in sorted((failures | totals.not_applied_by_outcome_reason).items()):
        yield "application_failures_total", key, count
    yield "tracer_restarts_total", (), totals.tracer_restarts


def _regions(moment: Moment) -> Iterator[Sample]:
    totals = moment.totals
    yield "regions_bound_total", (), totals.regions_bound
    yield "regions_undone_total", (), totals.regions_undone
    for reason, count in sorted(
        (dict.fromkeys((*REGION_FAILURES, OTHER), 0) | totals.failed_regions_by_reason).items()
    ):
        yield "region_failures_total", (reason,), count
    yield "region_reads_total", (), totals.region_reads
    yield "region_read_seconds_total", (), totals.region_read_seconds


def _pages(moment: Moment) -> Iterator[Sample]:
    totals = moment.totals
    for pair, pages in sorted(totals.pages_by_source_target.items()):
        yield "moved_pages_total", pair, pages
    for pair, size in sorted(totals.bytes_by_source_target.items()):
        yield "moved_bytes_total", pair, size
    for reason, pages in sorted((dict.fromkeys((*PAGE_FAILURES, OTHER), 0) | totals.failed_pages_by_reason).items()):
        yield "page_move_failures_total", (reason,), pages


def _events(moment: Moment) -> Iterator[Sample]:
    views = {view.name: view for view in moment.snapshot.sources} if moment.snapshot else {}
    counted = moment.totals.events_by_source.keys() | moment.totals.losses_by_source.keys()
    for name in sorted({*SOURCES, *views, *counted}):
        view = views.get(name)
        # A source counts for itself, and its reader may count as well: both since the start, so the larger holds.
        yield "events_total", (name,), max(view.events if view else 0, moment.totals.events_by_source.get(name, 0))
        yield (
            "event_losses_total",
            (name,),
            max(view.losses if view else 0, moment.totals.losses_by_source.get(name, 0)),
        )
        yield "source_up", (name,), bool(view and view.up)


def _scans(moment: Moment) -> Iterator[Sample]:
    totals, snapshot = moment.totals, moment.snapshot
    yield "scans_total", (), max(totals.scans, snapshot.scans if snapshot else 0)
    yield "scan_seconds_total", (), totals.scan_seconds
    yield (
        "last_scan_duration_seconds",
        (),
        totals.last_scan_seconds or (snapshot.last_scan_seconds if snapshot else 0.0),
    )


def _files(moment: Moment) -> Iterator[Sample]:
    files = moment.snapshot.files if moment.snapshot else ()
    for state in FILE_STATES:
        yield "policy_files", (state,), sum(file.state == state for file in files)
    for file in files:
        if file.faults:
            yield "policy_file_faults", (file.path,), len(file.faults)
    yield "reloads_total", (), moment.totals.reloads
    yield "reload_failures_total", (), moment.totals.failed_reloads


COLLECTORS: dict[str, Callable[[Moment], Iterator[Sample]]] = {
    "build": _build,
    "machine": _machine,
    "cgroups": _cgroups,
    "applications": _applications,
    "regions": _regions,
    "pages": _pages,
    "events": _events,
    "scans": _scans,
    "files": _files,
}


class Metrics(Collector):
    """Everything this daemon exports. A part that fails is left out, said in the log and in its own metric."""

    def __init__(
        self,
        publisher: Publisher,
        tally: Tally,
        label_limit: int = 200,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._publisher = publisher
        self._tally = tally
        self.label_limit = label_limit
        """The most cgroups with series of their own; may be set at any time (a reload)."""
        self._clock = clock
        self._failing: set[str] = set()

    def describe(self) -> Iterator[Metric]:
        """Names only: lets `?name[]=` pick metrics, and keeps a registration from collecting."""
        for declaration in DECLARATIONS.values():
            yield declaration.family()

    def collect(self) -> Iterator[Metric]:
        moment = Moment(self._publisher.latest, self._tally.totals(), self.label_limit)
        families: dict[str, Any] = {name: declaration.family() for name, declaration in DECLARATIONS.items()}
        for name, collector in COLLECTORS.items():
            begin = self._clock()
            try:
                # The whole part before any of it is shown: half a part would be wrong sums.
                samples = [
                    (families[family], [_label(label) for label in labels], float(value))
                    for family, labels, value in collector(moment)
                ]
            except Exception:
                self._failed(name)
                success = False
            else:
                self._failing.discard(name)
                success = True
                for family, labels, value in samples:
                    family.add_metric(labels, value)
            families["scrape_collector_success"].add_metric([name], success)
            families["scrape_collector_duration_seconds"].add_metric([name], self._clock() - begin)
        totals = moment.totals
        families["pause_seconds"].add_metric([], _buckets(totals.pauses), totals.pause_sum)
        families["cgroup_move_to_policy_seconds"].add_metric([], _buckets(totals.cgroup_moves), totals.cgroup_move_sum)
        families["region_delay_seconds"].add_metric([], _buckets(totals.region_delays), totals.region_delay_sum)
        yield from families.values()

    def _failed(self, name: str) -> None:
        """Said once until it works again: a scrape comes every few seconds."""
        if name not in self._failing:
            self._failing.add(name)
            log.exception("metrics: the part %r of the scrape failed", name)


def _label(value: object) -> str:
    """A label value. Names of cgroups and files may be any bytes, and the exposition format is UTF-8."""
    text = str(value)
    return text if text.isascii() and text.isprintable() else printable(text)


def _buckets(cumulative: list[tuple[float, int]]) -> list[tuple[str, float]]:
    return [("+Inf" if bound == float("inf") else repr(bound), float(count)) for bound, count in cumulative]


def registry(metrics: Metrics) -> CollectorRegistry:
    """A registry of our own: the global one may hold what a library put there."""
    own = CollectorRegistry(auto_describe=False)
    own.register(metrics)
    return own


def table() -> str:
    """The contract, in Markdown."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for declaration in DECLARATIONS.values():
        labels = ", ".join(f"`{label}`" for label in declaration.labels)
        lines.append(f"| `{declaration.name}` | {declaration.kind} | {labels} | {declaration.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--table"]:
        sys.exit("usage: python -m hetmemd.report.metrics --table")
    sys.stdout.write(table())
