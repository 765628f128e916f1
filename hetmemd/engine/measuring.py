"""What is read of a process in the mover's threads: its figures, against the target that its placement comes to."""

from __future__ import annotations

import numpy as np

from hetmemd.engine.decide import issuable
from hetmemd.engine.record import Record
from hetmemd.engine.regionwise import LOCAL, Asked
from hetmemd.kernel import nodelist, procfs
from hetmemd.kernel.mempolicy import Mode
from hetmemd.kernel.root import Root
from hetmemd.machine.topology import Machine
from hetmemd.memory import plan, targets
from hetmemd.memory.measure import Measurement, measure
from hetmemd.memory.sample import Estimate, Settled, sample
from hetmemd.memory.scope import narrowed, scope
from hetmemd.memory.targets import Share
from hetmemd.policy.effective import Placement


def figures(
    root: Root, record: Record, placement: Placement, machine: Machine, mappers: int, min_region: int
) -> tuple[Share, Measurement] | None:
    """What is held against which target, and where it is; None where the placement asks for no place (I6).

    `mappers`: processes that agree to moving what they share. A dead leader's numa_maps is empty: any live thread
    serves (T1). `OSError` as `measure`.
    """
    pid = record.process.pid
    tid = procfs.living_thread(root, pid)
    cpus: frozenset[int] = frozenset()
    classes = scope(placement.memory)
    if placement.mempolicy.mode is Mode.LOCAL or not classes.is_all:
        cpus = nodelist.parse(procfs.status(root, pid, tid)["Cpus_allowed_list"])
    target = target_of(placement, record.allowed, machine, cpus)
    if target is None:
        return None
    asked = Asked(issuable(placement.mempolicy, machine), classes, placement.home_node)
    home = target_of(Placement(LOCAL), record.allowed, machine, cpus)
    share = narrowed(
        targets.all_of(target, mappers),
        classes,
        home,
        lambda region: asked.is_met(region, record.allowed),
        min_region,
    )
    return share, measure(root, pid, share, tid)


def estimate(root: Root, pid: int, settled: Settled, chance: np.random.Generator) -> Estimate:
    """From a sample; of nothing where the process is gone."""
    tid = procfs.living_thread(root, pid)
    return sample(tid, settled.spans, chance) if tid else Estimate({})


def target_of(
    placement: Placement, allowed: frozenset[int], machine: Machine, cpus: frozenset[int] = frozenset()
) -> plan.Target | None:
    """Where pages should be, on the nodes that the process may use; None where the mode asks for no place (I6).

    `cpus` are those that it may run on: `local` is memory of their nodes, or where a node has none the nearest, from
    which the kernel serves its CPUs. Without them nothing is local.
    """
    if placement.mempolicy.mode is Mode.LOCAL:
        nodes = _local(machine, cpus) & allowed
    else:
        nodes = placement.nodes_within(allowed)
    if not nodes:
        return None
    if placement.is_ratio:
        return plan.ratio(placement.shares(allowed))
    return plan.within(nodes, {number: node.distances for number, node in machine.nodes.items()})


def _local(machine: Machine, cpus: frozenset[int]) -> frozenset[int]:
    found: set[int] = set()
    for node in machine.nodes.values():
        if not node.cpus & cpus:
            continue
        if node.has_memory:
            found.add(node.id)
            continue
        distances = {to: node.distances[to] for to in machine.memory_nodes if to in node.distances}
        found |= {to for to, distance in distances.items() if distance == min(distances.values())}
    return frozenset(found)
