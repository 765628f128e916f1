"""What `hetmemctl bind` and `hetmemctl move` do to one process, without a policy file and without the service.

The process_mbind and the re-interleaving that the kernel lacks. Everything that keeps a task from harm is in the tracer
and the mover, which are those of the daemon.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hetmemd.engine.by_hand_brakes import ByHandBrakes, RefusedError
from hetmemd.engine.clearance import Clearance, huge_pages
from hetmemd.engine.decide import issuable, nodes_within, shows
from hetmemd.engine.measuring import target_of
from hetmemd.engine.regionwise import ALWAYS, ON_CONDITION, TAKES_HOME, Asked, Change, joined
from hetmemd.kernel import nodelist, pages, procfs
from hetmemd.kernel.mempolicy import DEFAULT, Mode
from hetmemd.kernel.pagemap import HUGE, HUGE_PAGES, Pagemap
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.machine.topology import Machine
from hetmemd.memory import measure, regions
from hetmemd.memory.headroom import Headroom
from hetmemd.memory.measure import Measurement
from hetmemd.memory.moving import beside_one_another
from hetmemd.memory.plan import Target
from hetmemd.memory.rebalance import ProcessPass
from hetmemd.memory.regions import ACTED_ON, Region
from hetmemd.memory.scope import scope
from hetmemd.memory.targets import Share, all_of
from hetmemd.policy import placing
from hetmemd.policy.effective import Placement
from hetmemd.policy.language import Request
from hetmemd.policy.placing import Confines
from hetmemd.remote.client import Tracer
from hetmemd.remote.regions import HomeNode, RegionCall

STEP = 64 << 20
LANES = 2
"""Of moving, which is quicker than migratepages(8) so. The daemon has one: it is not in a hurry."""
CHUNK = 16384
"""Pages that are asked for at once."""
SLICE = 256
"""Calls between two looks at the kill switch."""
PRIVATE = frozenset({"heap", "anon"})
"""What is bound where nothing is said: what moves with a program's data."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The regions that a person means."""

    kinds: frozenset[str] = PRIVATE
    span: tuple[int, int] | None = None
    """Addresses; regions are cut to it. Then kinds are not asked for."""

    def cut(self, found: Sequence[Region]) -> list[Region]:
        """What of the regions is meant, ascending."""
        if self.span is None:
            return [region for region in found if region.kind in self.kinds]
        low, high = self.span
        inside = [region for region in found if region.start < high and low < region.end]
        return [replace(region, start=max(region.start, low), end=min(region.end, high)) for region in inside]


@dataclass(frozen=True, slots=True)
class Found:
    """A process, looked at once."""

    process: ProcessId
    tid: int
    regions: list[Region]
    allowed: frozenset[int]
    cpus: frozenset[int]


def look(root: Root, pid: int, machine: Machine) -> Found:
    """`RefusedError` for a process that has no memory of its own; `OSError` as for `regions.read`."""
    process = procfs.identify(root, pid)
    tid = procfs.living_thread(root, pid)
    found = regions.read(root, pid, tid) if tid is not None else []
    if tid is None or not found:
        raise RefusedError(f"process {pid} has no memory: a kernel thread, or one that has ended")
    status = procfs.status(root, pid, tid)
    allowed = procfs.mems_allowed(status) & machine.memory_nodes
    return Found(process, tid, found, allowed, nodelist.parse(status["Cpus_allowed_list"]))


def placement_of(
    request: Request, found: Found, machine: Machine, is_issued: bool = True
) -> tuple[Placement, list[str]]:
    """The request for this process: selectors and weights resolved, selectors cut to the nodes that there are; and what
    became of what was asked for besides. `is_issued` as for `placing.place`.

    `RefusedError` where a node was named that the process cannot have: whoever types a number means it.
    """
    named = request.nodes.plainly if request.nodes and request.nodes.is_plain else frozenset()
    if lacking := named - found.allowed:
        there = nodelist.format_list(found.allowed)
        what = nodelist.format_list(lacking)
        raise RefusedError(f"node {what} has no memory, or none for this process: it may use {there}")
    placed = placing.place(request, machine, Confines(found.cpus, found.allowed), None, is_issued)
    if placed.placement is None:
        raise RefusedError(placed.notes[-1] if placed.notes else "no node is left")
    return placed.placement, list(placed.notes)


def exactly(root: Root, found: Found, chosen: Sequence[Region]) -> list[Region]:
    """The chosen regions with the pages that lie within them: numa_maps counts those of whole mappings."""
    whole = {(region.start, region.end) for region in found.regions if not region.is_part}
    return [
        region
        if (region.start, region.end) in whole
        else replace(region, pages_by_node=_pages(root, found, region.start, region.end), is_part=False)
        for region in chosen
    ]


def _chosen(root: Root, found: Found, choice: Choice) -> list[Region]:
    """`RefusedError` for a range without any memory: nothing of what is wanted could be done."""
    cut = choice.cut(found.regions)
    if choice.span and not cut:
        raise RefusedError(f"process {found.process.pid} has nothing mapped in that range")
    return exactly(root, found, cut)


def _pages(root: Root, found: Found, start: int, end: int) -> Counter[int]:
    """By node, in units of 4 KiB, without huge pages that are not wholly within."""
    counted: Counter[int] = Counter()
    with Pagemap(root, found.process.pid, found.tid) as pagemap:
        while start < end:
            there = pagemap.present(start, end, CHUNK)
            nodes = pages.query(found.tid, there.addresses)
            for node in np.unique(nodes[nodes >= 0]).tolist():
                counted[node] += int(there.sizes[nodes == node].sum())
            start = there.next
    return counted


def _cut_huge_pages(root: Root, found: Found, span: tuple[int, int], share: Share) -> int:
    """Bytes of the transparent huge pages of which a part only is in the span, and could be moved."""
    begins = {edge - edge % HUGE for edge in span if edge % HUGE}
    with Pagemap(root, found.process.pid, found.tid) as pagemap:
        return HUGE * sum(
            HUGE_PAGES in pagemap.present(begin, begin + HUGE, CHUNK).sizes
            for begin in begins
            if any(region.start <= begin < region.end and share(region) for region in found.regions)
        )


# -- bind


def cleared(root: Root, chosen: Sequence[Region], placement: Placement, found: Found) -> frozenset[int]:
    """Starts of the regions of shared and huge memory that may be bound: as for the daemon, but that by hand nobody
    speaks for other processes that map the same."""
    clearance = Clearance(root, lambda path: Asked(None, scope(("all",))))
    huge = [region for region in chosen if region.kind == "hugetlb"]
    if placement.mempolicy == DEFAULT:
        free = frozenset(region.start for region in huge)
    else:
        free = huge_pages(root, huge, placement.mempolicy, found.allowed)
    return free | clearance.alone(chosen, found.process.pid)


def changes(
    chosen: Sequence[Region],
    placement: Placement,
    found: Found,
    machine: Machine,
    overrides: bool,
    cleared: frozenset[int] = frozenset(),
) -> Changes:
    """Which mbind calls bring the chosen regions to the placement. `cleared` as for `decide_regions`. Pure."""
    policy = issuable(placement.mempolicy, machine)
    home = placement.home_node if policy.mode in TAKES_HOME else None
    made: list[Change] = []
    left: Counter[str] = Counter()
    for region in chosen:
        has_it = region.policy is not None and shows(region.policy, policy, found.allowed)
        if region.kind not in ALWAYS | ON_CONDITION:
            left[f"{region.kind}: cannot be bound"] += 1
        elif has_it if region.is_bound else policy == DEFAULT:
            left["has it already"] += 1
        elif region.is_bound and not overrides:
            left["has a policy of its own (--override)"] += 1
        elif region.kind == "hugetlb" and region.page_size and (region.start | region.end) % region.page_size:
            left["hugetlb: the range begins or ends within a huge page"] += 1
        elif region.kind in ON_CONDITION and region.start not in cleared:
            left[_UNCLEARED[region.kind]] += 1
        else:
            made.append(Change(region.start, region.end, policy, DEFAULT, home))
    return Changes(tuple(joined(made)), left)


_UNCLEARED = {
    "shm": "shm: other processes map it, or may",
    "hugetlb": "hugetlb: its nodes do not have as many free huge pages",
}


@dataclass(frozen=True, slots=True)
class Changes:
    made: tuple[Change, ...]
    left: Counter[str]
    """Regions that are left alone, by why."""

    @property
    def size(self) -> int:
        return sum(change.end - change.start for change in self.made)


def check_headroom(headroom: Headroom, wanted: Changes, allowed: frozenset[int]) -> None:
    """`RefusedError` (L7)."""
    policies = {change.policy for change in wanted.made if change.policy.mode is Mode.BIND}
    if not all(headroom.bears(nodes_within(policy, allowed)) for policy in policies):
        raise RefusedError("the nodes have no headroom: bind could end in the out-of-memory killer (L7)")


async def bind(root: Root, found: Found, wanted: Changes, brakes: ByHandBrakes) -> dict[str, Any]:
    """Have them made; what became of each."""
    calls: list[RegionCall] = [call for change in wanted.made for call in change.calls]
    failed: Counter[str] = Counter()
    done, pauses = 0, [0]
    tracer = Tracer(root)
    try:
        for begin in range(0, len(calls), SLICE):
            some = calls[begin : begin + SLICE]
            if why := brakes.switch():
                failed[why] += len(calls) - begin
                break
            result = await tracer.bind(found.process, some)
            failed.update(os.strerror(code) for code in result.errnos if code)
            pairs = zip(some, result.errnos, strict=False)
            done += sum(not code and not isinstance(call, HomeNode) for call, code in pairs)
            pauses += result.pauses_ns
            if result.outcome.value != "applied":
                failed[result.reason or result.outcome.value] += len(calls) - begin - len(result.errnos)
                break
    finally:
        tracer.close()
    return {
        "bound": done,
        "failed": dict(failed),
        "stops": len(pauses) - 1,
        "longest_stop_seconds": max(pauses) / 1e9,
    }


# -- move


def share_of(choice: Choice, target: Target) -> Share:
    """What is chosen, held against the target, where it belongs to the process alone. Bound regions too."""
    whole = all_of(target)

    def share(region: Region) -> Target | None:
        is_meant = bool(choice.cut([region]))
        return whole(replace(region, is_bound=False)) if is_meant else None

    return share


def target_for(placement: Placement, found: Found, machine: Machine) -> Target:
    target = target_of(placement, found.allowed, machine, found.cpus)
    if target is None:
        raise RefusedError("its cpuset allows none of these nodes")
    return target


def placed(figures: Measurement) -> dict[str, Any]:
    """Where what is chosen lies, and what of it lies wrong: the least that has to move."""
    return {
        "bytes_by_node": {str(node): size for node, size in sorted(figures.bytes_by_node.items())},
        "misplaced_bytes": int(figures.misplaced),
        "distance": figures.distance,
    }


def move(mover: ProcessPass, rate: int, stop: Callable[[], str], progress: Callable[[int], None]) -> dict[str, Any]:
    """One pass, at most `rate` bytes a second. Blocks until it is over, or `stop` says why it has to be, or Ctrl-C."""
    moved, failed = 0, Counter[str]()
    began = time.monotonic()
    try:
        while not (stopped := stop()):
            result = mover.step(STEP)
            moved += result.bytes_moved
            failed.update(result.failed)
            progress(moved)
            if result.done:
                stopped = "the process is gone" if result.gone else ""
                break
            owed = moved / rate - (time.monotonic() - began)
            # Left alone for as long as the step took. Half of the time is the process's own: the daemon leaves it far
            # more, but here somebody waits.
            time.sleep(max(owed, result.wait, result.seconds))
    except KeyboardInterrupt:
        stopped = "interrupted"  # of a step that it fell into, nothing is told
    return {
        "moved_bytes": moved,
        "failed_pages": dict(failed),
        "seconds": time.monotonic() - began,
        "stopped": stopped or None,
    }


def run_bind(root: Root, pid: int, choice: Choice, request: Request, overrides: bool, dry_run: bool) -> dict[str, Any]:
    """`hetmemctl bind`, as plain data."""
    machine = topology.read(root)
    brakes, found = _looked_at(root, pid, machine, dry_run)
    placement, notes = placement_of(request, found, machine)
    chosen = _chosen(root, found, choice)
    wanted = changes(chosen, placement, found, machine, overrides, cleared(root, chosen, placement, found))
    check_headroom(Headroom(root), wanted, found.allowed)
    told: dict[str, Any] = {
        "pid": pid,
        "policy": str(issuable(placement.mempolicy, machine)),
        "notes": notes,
        "ranges": [{"start": change.start, "end": change.end} for change in wanted.made],
        "bytes": wanted.size,
        "left": dict(wanted.left),
        "dry_run": dry_run,
    }
    if not dry_run and wanted.made:
        told |= asyncio.run(bind(root, found, wanted, brakes))
    return told


def run_move(
    root: Root,
    pid: int,
    choice: Choice,
    request: Request,
    rate: int,
    dry_run: bool,
    progress: Callable[[int], None] = lambda moved: None,
) -> dict[str, Any]:
    """`hetmemctl move`, as plain data."""
    machine = topology.read(root)
    brakes, found = _looked_at(root, pid, machine, dry_run)
    placement, notes = placement_of(request, found, machine, is_issued=False)
    share = share_of(choice, target_for(placement, found, machine))
    before = measure.of_regions(_chosen(root, found, choice), share)
    left = {why: sum(by_node.values()) for why, by_node in sorted(before.left_out.items())}
    if choice.span and (cut := _cut_huge_pages(root, found, choice.span, share)):
        left["huge pages that lie only partly in the range"] = cut
    told: dict[str, Any] = {"pid": pid, "notes": notes, "before": placed(before), "left": left, "dry_run": dry_run}
    if not dry_run:
        with beside_one_another(min(LANES, len(os.sched_getaffinity(0)))) as lanes:
            mover = ProcessPass(root, found.process, share, within=choice.span, lanes=lanes)
            told |= move(mover, rate, lambda: brakes.switch() or _shares(brakes, pid), progress)
        if not told["stopped"]:
            now = look(root, pid, machine)
            told["after"] = placed(measure.of_regions(exactly(root, now, choice.cut(now.regions)), share))
    return told


def _shares(brakes: ByHandBrakes, pid: int) -> str:
    try:
        return brakes.shares_memory(pid)
    except OSError:
        return "the process is gone"


def _looked_at(root: Root, pid: int, machine: Machine, dry_run: bool) -> tuple[ByHandBrakes, Found]:
    """What is refused is refused before anything of the process is read."""
    brakes = ByHandBrakes(root)
    if not dry_run and (why := brakes.switch()):
        raise RefusedError(why)
    brakes.check(procfs.identify(root, pid))
    return brakes, look(root, pid, machine)


MOVABLE = ACTED_ON
"""Classes that can be moved."""
