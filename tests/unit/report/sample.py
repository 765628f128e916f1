"""A snapshot with something in every corner, for tests of what is told of it."""

from __future__ import annotations

from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.machine.movers import Mover
from hetmemd.policy.effective import Effective, Handling, Loser, Placement, Source
from hetmemd.report.snapshot import CgroupView, FileView, Snapshot, SourceView, TaskView
from hetmemd.report.tally import Tally

MIB = 1 << 20
NOW = 1_700_000_000.0
WEIGHTED = Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1}), Flag.STATIC_NODES)
FILE = "/etc/hetmemd.d/50-redis.toml"


def task(pid: int = 812, outcome: str = "applied", reason: str = "", comm: str = "redis-server") -> TaskView:
    return TaskView(
        pid=pid,
        start=1,
        comm=comm,
        outcome=outcome,
        reason=reason,
        threads=4,
        policy_now="weighted interleave=static:0-1",
        bytes_by_node={0: 192 * MIB, 1: 64 * MIB},
        distance=0.003,
        last_action="applied to 4 threads",
        last_action_at=NOW - 12,
    )


def owner(
    cgroup: str = "/system.slice/redis\\x2dserver.service", tasks: tuple[TaskView, ...] | None = None
) -> CgroupView:
    return CgroupView(
        effective=Effective(
            cgroup=cgroup,
            state="active",
            placement=Placement(WEIGHTED, {0: 3, 1: 1}),
            handling=Handling(),
            own=Source(cgroup, FILE, 2),
            inherited_from=None,
            rules=("M1", "I3"),
            losers=(Loser("/usr/lib/hetmemd.d/10-all.toml", 7, "a weaker directory"),),
            notes=("node 3 does not exist and was cut (I6)",),
        ),
        tasks=(task(), task(813, "deferred", "frozen")) if tasks is None else tasks,
        bytes_by_node={0: 384 * MIB, 1: 128 * MIB},
        target_shares={0: 0.75, 1: 0.25},
        distance=0.003,
    )


def heir(cgroup: str = "/system.slice/redis\\x2dserver.service/child") -> CgroupView:
    return CgroupView(
        effective=Effective(
            cgroup=cgroup,
            state="blocked",
            placement=None,
            handling=Handling(existing="once", rate_total=MIB),
            own=None,
            inherited_from=Source("/system.slice", FILE, 9),
            rules=("I1", "I6"),
            notes=("nothing of nodes 1 is allowed",),
            wanted=Placement(Mempolicy(Mode.BIND, frozenset({1}), Flag.STATIC_NODES)),
        ),
        tasks=(),
        bytes_by_node={},
        target_shares={},
        distance=None,
    )


def snapshot(*cgroups: CgroupView, observing: bool = False) -> Snapshot:
    return Snapshot(
        at=NOW - 1,
        version="0.1.0",
        started_at=NOW - 7200,
        observing=observing,
        cgroups=cgroups or (owner(), heir()),
        files=(
            FileView(FILE, "in-force", ()),
            FileView("/etc/hetmemd.d/60-new.toml", "last-good", ("/etc/hetmemd.d/60-new.toml:3: unknown key 'nods'",)),
            FileView("/usr/lib/hetmemd.d/50-redis.toml", "masked", ()),
        ),
        sources=(
            SourceView("inotify-cgroup", True, 1234, 0, ""),
            SourceView("inotify-files", True, 5, 0, ""),
            SourceView("proc-connector", False, 10, 2, "no CAP_NET_ADMIN: scans stand in"),
        ),
        notes=("no weighted interleave before 6.9: interleave, and the ratio by moving",),
        movers=(
            Mover("numa-balancing", False),
            Mover("demotion", True, "moves pages to a slower node"),
            Mover("damon", None, "not to be read"),
        ),
        kernel_weights={0: 3, 1: 1},
        scans=9,
        last_scan_seconds=0.004,
    )


def tally() -> Tally:
    counted = Tally()
    counted.nodes((0, 1))
    for _ in range(3):
        counted.application("applied")
        counted.pause(40e-6)
    counted.application("deferred", "frozen")
    counted.cgroup_move(0.015)
    counted.pages_moved(0, 1, 16384, 64 * MIB)
    counted.pages_failed("busy", 2)
    counted.scan(0.25)
    counted.reload(True)
    counted.reload(False)
    counted.tracer_restart()
    return counted
