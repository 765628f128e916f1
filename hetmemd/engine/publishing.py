"""The snapshot of a moment, put together from what the engine knows. Pure but for the clock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hetmemd import __version__
from hetmemd.engine.balancing import target_of
from hetmemd.engine.record import Record
from hetmemd.engine.world import World
from hetmemd.kernel import libc, nodelist
from hetmemd.kernel.mempolicy import Mode
from hetmemd.machine import weights
from hetmemd.policy.effective import Effective
from hetmemd.report.snapshot import CgroupView, FileView, Snapshot, SourceView


@dataclass(frozen=True, slots=True)
class Progress:
    """What the engine has counted."""

    started_at: float
    observing: bool
    scans: int
    last_scan: float


def snapshot(
    world: World, records: Iterable[Record], sources: tuple[SourceView, ...], progress: Progress, notes: Iterable[str]
) -> Snapshot:
    by_cgroup: dict[str, list[Record]] = {}
    for record in records:
        by_cgroup.setdefault(record.cgroup, []).append(record)
    reached = [effective for path, effective in sorted(world.effective.items()) if world.reached(path)]
    return Snapshot(
        at=time.time(),
        version=__version__,
        started_at=progress.started_at,
        observing=progress.observing,
        cgroups=tuple(_cgroup(effective, by_cgroup.get(effective.cgroup, []), world) for effective in reached),
        files=tuple(
            FileView(file.path, file.state, tuple(str(fault) for fault in file.faults)) for file in world.library.files
        ),
        sources=sources,
        notes=(*notes, *limitations(world, reached)),
        kernel_weights=world.machine.kernel_weights,
        scans=progress.scans,
        last_scan_seconds=progress.last_scan,
    )


def _cgroup(effective: Effective, records: list[Record], world: World) -> CgroupView:
    placed: Counter[int] = Counter()
    for record in records:
        placed.update(record.bytes_by_node)
    # Tasks of one cgroup can have several cpusets only in threaded ones: what the first may use stands for all.
    allowed = next((record.allowed for record in records if record.allowed), world.machine.memory_nodes)
    target = target_of(effective.placement, allowed, world.machine) if effective.placement else None
    measured = target is not None and any(record.distance is not None for record in records)
    return CgroupView(
        effective=effective,
        tasks=tuple(record.view() for record in sorted(records, key=lambda record: record.process.pid)),
        bytes_by_node=dict(placed),
        target_shares=target.shares if target else {},
        distance=target.distance(placed) if target and measured else None,
    )


def limitations(world: World, reached: Iterable[Effective]) -> list[str]:
    """What this machine cannot do, each with the way round it that is taken (L5)."""
    machine = world.machine
    found = list(world.library.notes)
    if world.holds:
        found.append(
            "a policy file is broken and its last good version is lost: policies that an earlier run applied stay, "
            "also where no policy reaches, until the file is mended or removed (F2)"
        )
    if not libc.SUPPORTED:
        found.append("this architecture has no stub for calls in other tasks: pages are moved, policies are not set")
    if len(machine.memory_nodes) == 1:
        found.append(
            "this machine has one memory node: policies are applied and shown, and there is nowhere to move to"
        )
    placements = [each.placement for each in reached if each.placement is not None]
    weighted = [each for each in placements if each.mempolicy.mode is Mode.WEIGHTED_INTERLEAVE]
    if weighted and machine.kernel_weights is None:
        found.append(
            "this kernel has no weighted interleave (6.9 has): new pages are interleaved evenly, "
            "and the ratio is made by moving"
        )
    elif any(not weights.agrees_with_kernel(machine, each.weights) for each in weighted):
        table = _table(machine.kernel_weights or {})
        found.append(
            f"the kernel's table of weights ({table}) differs from what policies ask for: new pages come in its ratio, "
            "and are moved to the policy's"
        )
    return found


def _table(of_nodes: Mapping[int, int]) -> str:
    by_weight: dict[int, list[int]] = {}
    for node, weight in sorted(of_nodes.items()):
        by_weight.setdefault(weight, []).append(node)
    return ", ".join(f"node {nodelist.format_list(nodes)}: {weight}" for weight, nodes in by_weight.items())
