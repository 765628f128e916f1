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

from hetmemd.engine.balancing import target_of
from hetmemd.engine.decide import issuable, shows
from hetmemd.engine.regionwise import ALWAYS, ON_CONDITION, TAKES_HOME, Change, joined
from hetmemd.kernel import nodelist, procfs
from hetmemd.kernel.mempolicy import DEFAULT, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.machine.topology import Machine
from hetmemd.memory import measure, regions
from hetmemd.memory.headroom import Headroom
from hetmemd.memory.plan import Target
from hetmemd.memory.rebalance import ProcessPass
from hetmemd.memory.regions import ACTED_ON, Region
from hetmemd.memory.targets import Share, all_of
from hetmemd.policy import placing
from hetmemd.policy.effective import Placement
from hetmemd.policy.language import Request
from hetmemd.policy.placing import Confines
from hetmemd.remote.client import Tracer
from hetmemd.remote.regions import HomeNode, RegionCall

BIND_RESERVE = 16384
"""Pages (64 MiB) that must be free on the nodes of a `bind`, above what moving leaves alone (L7)."""
STEP = 64 << 20
PRIVATE = frozenset({"heap", "anon"})
"""What is bound where nothing is said: what moves with a program's data."""


class RefusedError(RuntimeError):
    """Nothing is done; the text says why."""


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


def placement_of(request: Request, found: Found, machine: Machine) -> Placement:
    """The request for this process: selectors and weights resolved, cut to the nodes that there are."""
    placed = placing.place(request, machine, Confines(found.cpus, found.allowed), None)
    if placed.placement is None:
        raise RefusedError(placed.notes[-1] if placed.notes else "no node is left")
    return placed.placement


# -- bind


def changes(chosen: Sequence[Region], placement: Placement, found: Found, machine: Machine, overrides: bool) -> Changes:
    """Which mbind calls bring the chosen regions to the placement. Pure."""
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
        else:
            made.append(Change(region.start, region.end, policy, DEFAULT, home))
    return Changes(tuple(joined(made)), left)


@dataclass(frozen=True, slots=True)
class Changes:
    made: tuple[Change, ...]
    left: Counter[str]
    """Regions that are left alone, by why."""

    @property
    def size(self) -> int:
        return sum(change.end - change.start for change in self.made)


async def bind(root: Root, found: Found, wanted: Changes) -> dict[str, Any]:
    """Have them made; what became of each."""
    for change in wanted.made:
        if change.policy.mode is Mode.BIND:
            headroom = Headroom(root)
            if sum(headroom.room(node) for node in change.policy.nodes) < BIND_RESERVE:
                raise RefusedError("the nodes have no headroom: bind could end in the out-of-memory killer (L7)")
    calls: list[RegionCall] = [call for change in wanted.made for call in change.calls]
    tracer = Tracer(root)
    try:
        result = await tracer.bind(found.process, calls)
    finally:
        tracer.close()
    failed = Counter(os.strerror(code) for code in result.errnos if code)
    done = sum(not code and not isinstance(call, HomeNode) for call, code in zip(calls, result.errnos, strict=False))
    if result.outcome.value != "applied":
        failed[result.reason or result.outcome.value] += len(calls) - len(result.errnos)
    longest = max(result.pauses_ns, default=0)
    return {
        "bound": done,
        "failed": dict(failed),
        "stops": len(result.pauses_ns),
        "longest_stop_seconds": longest / 1e9,
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


def placed(found: Sequence[Region], share: Share) -> dict[str, Any]:
    """Where what is chosen lies, and what of it lies wrong: the least that has to move."""
    figures = measure.of_regions(found, share)
    return {
        "bytes_by_node": {str(node): size for node, size in sorted(figures.bytes_by_node.items())},
        "misplaced_bytes": int(figures.misplaced),
        "distance": figures.distance,
    }


def move(
    root: Root, found: Found, share: Share, span: tuple[int, int] | None, rate: int, progress: Callable[[int], None]
) -> dict[str, Any]:
    """One pass, at most `rate` bytes a second. Blocks until it is over."""
    mover = ProcessPass(root, found.process, share, within=span)
    moved, failed = 0, Counter[str]()
    began = time.monotonic()
    while True:
        result = mover.step(STEP)
        moved += result.bytes_moved
        failed.update(result.failed)
        progress(moved)
        if result.done:
            break
        time.sleep(max(moved / rate - (time.monotonic() - began), 0.0))
    return {"moved_bytes": moved, "failed_pages": dict(failed), "seconds": time.monotonic() - began}


def run_bind(root: Root, pid: int, choice: Choice, request: Request, overrides: bool, dry_run: bool) -> dict[str, Any]:
    """`hetmemctl bind`, as plain data."""
    machine = topology.read(root)
    found = look(root, pid, machine)
    placement = placement_of(request, found, machine)
    wanted = changes(choice.cut(found.regions), placement, found, machine, overrides)
    told: dict[str, Any] = {
        "pid": pid,
        "policy": str(issuable(placement.mempolicy, machine)),
        "ranges": [{"start": change.start, "end": change.end} for change in wanted.made],
        "bytes": wanted.size,
        "left": dict(wanted.left),
        "dry_run": dry_run,
    }
    if not dry_run and wanted.made:
        told |= asyncio.run(bind(root, found, wanted))
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
    found = look(root, pid, machine)
    share = share_of(choice, target_for(placement_of(request, found, machine), found, machine))
    told: dict[str, Any] = {"pid": pid, "before": placed(found.regions, share), "dry_run": dry_run}
    if not dry_run:
        told |= move(root, found, share, choice.span, rate, progress)
        told["after"] = placed(regions.read(root, pid, procfs.living_thread(root, pid)), share)
    return told


MOVABLE = ACTED_ON
"""Classes that can be moved."""
