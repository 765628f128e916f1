"""The snapshot of a moment, put together from what the engine knows. Pure but for the clock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hetmemd import __version__
from hetmemd.engine.holds import Hold
from hetmemd.engine.limits import limitations
from hetmemd.engine.measuring import target_of
from hetmemd.engine.others import remarks
from hetmemd.engine.record import Record
from hetmemd.engine.world import World
from hetmemd.memory.plan import Ratio, Target
from hetmemd.policy.effective import Effective
from hetmemd.report.snapshot import CgroupView, FileView, HoldView, Snapshot, SourceView


@dataclass(frozen=True, slots=True)
class Progress:
    """What the engine has counted."""

    started_at: float
    observing: bool
    scans: int
    last_scan: float
    switched_by: str = ""
    """What turned the kill switch on."""
    holds: tuple[Hold, ...] = ()
    crashes: int = 0


def snapshot(
    world: World, records: Iterable[Record], sources: tuple[SourceView, ...], progress: Progress, notes: Iterable[str]
) -> Snapshot:
    of_all = list(records)
    by_cgroup: dict[str, list[Record]] = {}
    for record in of_all:
        by_cgroup.setdefault(record.cgroup, []).append(record)
    # Where only threads are reached, in cgroups of their own (T1), the process is in one that is not.
    reached = [
        effective for path, effective in sorted(world.effective.items()) if world.reached(path) or path in by_cgroup
    ]
    return Snapshot(
        at=time.time(),
        version=__version__,
        started_at=progress.started_at,
        observing=progress.observing,
        switched_by=progress.switched_by,
        cgroups=tuple(_cgroup(effective, by_cgroup.get(effective.cgroup, []), world) for effective in reached),
        files=tuple(
            FileView(file.path, file.state, tuple(str(fault) for fault in file.faults)) for file in world.library.files
        ),
        sources=sources,
        notes=(*notes, *_unheard(sources), *_notes(world, reached, of_all)),
        holds=tuple(HoldView(hold.kind, hold.what, hold.why, hold.since, hold.detail) for hold in progress.holds),
        crashes=progress.crashes,
        movers=world.movers,
        kernel_weights=world.machine.kernel_weights,
        scans=progress.scans,
        last_scan_seconds=progress.last_scan,
    )


def _cgroup(effective: Effective, records: list[Record], world: World) -> CgroupView:
    placed: Counter[int] = Counter()
    left_out: Counter[str] = Counter()
    for record in records:
        placed.update(record.bytes_by_node)
        left_out.update(record.left_out)
    # Tasks of one cgroup can have several cpusets only in threaded ones: what the first may use stands for all.
    allowed = next((record.allowed for record in records if record.allowed), world.machine.memory_nodes)
    target = target_of(effective.placement, allowed, world.machine) if effective.placement else None
    distance = _distance(target, placed, records)
    return CgroupView(
        effective=effective,
        tasks=tuple(record.view() for record in sorted(records, key=lambda record: record.process.pid)),
        bytes_by_node=dict(placed),
        target_shares=target.shares if target else {},
        distance=distance,
        left_out=dict(left_out),
        measured_at=min((record.measured_at for record in records), default=0.0),
        notes=remarks(records, (distance or 0.0) > effective.handling.tolerance, world.movers),
    )


def _unheard(sources: Iterable[SourceView]) -> list[str]:
    """What is lost with the source that tells of crashes."""
    return [
        "the proc connector is down: a program that crashes after its policy was set is not noticed, and no executable "
        "or policy is held for it"
        for source in sources
        if source.name == "proc-connector" and not source.up
    ]


def _distance(target: Target | None, placed: Mapping[int, int], records: list[Record]) -> float | None:
    """Of the cgroup as a whole: what one process has too much of a node makes up for what another lacks there."""
    measured = [record for record in records if record.distance is not None]
    if not measured:
        return None
    if isinstance(target, Ratio):
        return target.distance(placed)
    sizes = [sum(record.bytes_by_node.values()) for record in measured]
    misplaced = sum(size * (record.distance or 0.0) for size, record in zip(sizes, measured, strict=True))
    return misplaced / sum(sizes) if sum(sizes) else 0.0


def _notes(world: World, reached: Iterable[Effective], records: Iterable[Record]) -> list[str]:
    notes = list(world.library.notes)
    if world.holds:
        notes.append(
            "a policy file is broken and its last good version is lost: policies that an earlier run applied stay, "
            "also where no policy reaches, until the file is mended or removed (F2)"
        )
    placements = [each.placement for each in reached if each.placement is not None]
    reasons = {reason for record in records for reason in record.reasons}
    return [*notes, *limitations(world.machine, placements, reasons)]
