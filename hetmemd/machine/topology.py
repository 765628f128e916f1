"""The machine's memory nodes, as sysfs has them (Documentation/ABI/stable/sysfs-devices-node, numaperf.rst).

Whatever a kernel or a firmware does not tell is absent from the values, never guessed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from hetmemd.kernel import features, nodelist
from hetmemd.kernel.features import ALL, Features
from hetmemd.kernel.nodelist import MAX_NUMNODES
from hetmemd.kernel.root import Root
from hetmemd.machine import firmware

NODES = "/sys/devices/system/node"
CPUS = "/sys/devices/system/cpu"
TIERS = "/sys/devices/virtual/memory_tiering"  # 6.1
WEIGHTS = "/sys/kernel/mm/mempolicy/weighted_interleave"  # 6.9

_MOST_CPUS = 1 << 16
"""More than any kernel has (CONFIG_NR_CPUS <= 8192, arch/x86/Kconfig): what is longer is no kernel's."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node that is online."""

    id: int
    cpus: frozenset[int]
    memory: int
    """Bytes; 0 where meminfo does not say."""
    distances: Mapping[int, int] = field(default_factory=dict)
    """To each online node, itself among them: 10 is local (ACPI SLIT)."""
    bandwidth: int | None = None
    """MB/s from the nearest CPUs, the lesser of read and write; None where firmware has no figures (HMAT, CDAT)."""
    tier: int | None = None
    """N of memory_tierN: lower is faster; None before 6.1 and for nodes without memory."""
    initiators: frozenset[int] = frozenset()
    """Nodes whose CPUs reach this memory best, as firmware says; empty without figures."""
    has_memory: bool = True
    """In the kernel's N_MEMORY: pages can be allocated here."""


@dataclass(frozen=True, slots=True)
class Machine:
    """All nodes that are online, and the kernel's global table for weighted interleave."""

    nodes: Mapping[int, Node]
    kernel_weights: Mapping[int, int] | None = None
    """1 to 255 by node; None before 6.9, and where it is not known."""
    kernel_auto: bool | None = None
    """Whether the kernel keeps that table by itself from bandwidths (6.16); None where it has no such switch."""
    packages: Mapping[int, int] = field(default_factory=dict)
    """The socket of each CPU (physical_package_id)."""
    features: Features = ALL
    """What the running kernel takes of policies. From a collected tree nothing is known to be missing."""
    knows_weights: bool = True
    """False for a collected tree that has neither the kernel's table nor the release of a kernel without one."""

    @property
    def memory_nodes(self) -> frozenset[int]:
        return frozenset(node.id for node in self.nodes.values() if node.has_memory)

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset(cpu for node in self.nodes.values() for cpu in node.cpus)

    def best_initiators(self, node: int) -> frozenset[int]:
        """The nodes with CPUs that reach `node` best: by firmware's word, else by the smallest distance."""
        told = frozenset(other for other in self.nodes[node].initiators if other in self.nodes)
        if told:
            return told
        distances = {
            other.id: self.nodes[node].distances[other.id]
            for other in self.nodes.values()
            if other.cpus and other.id in self.nodes[node].distances
        }
        least = min(distances.values(), default=0)
        return frozenset(other for other, distance in distances.items() if distance == least)

    def nearest(self, cpus: frozenset[int]) -> frozenset[int]:
        """The memory nodes of the sockets that `cpus` touch, with the CPU-less ones whose best initiators those are.

        A socket may hold several nodes (sub-NUMA clustering). Where sysfs has no sockets each node is its own.
        """
        sockets = {self.packages[cpu] for cpu in cpus if cpu in self.packages}
        near = frozenset(
            node.id
            for node in self.nodes.values()
            if node.cpus & cpus or any(self.packages.get(cpu) in sockets for cpu in node.cpus)
        )
        memory_only = {
            node.id for node in self.nodes.values() if not node.cpus and self.best_initiators(node.id) & near
        }
        return (near | memory_only) & self.memory_nodes


def read(root: Root) -> Machine:
    """The machine below `root`; without nodes where the kernel has no NUMA.

    `OSError` with the file's name for what cannot be read, or says what no kernel says, as in a damaged tree.
    """
    online = _online(root)
    with_memory = _list(root, f"{NODES}/has_memory", MAX_NUMNODES)
    tiers = _tiers(root)
    nodes = {number: _node(root, number, online, with_memory, tiers.get(number)) for number in online}
    weights, auto = kernel_table(root)
    return Machine(
        nodes,
        weights,
        auto,
        _packages(root),
        features.probe() if root.is_live else ALL,
        knows_weights=root.is_live or weights is not None or _is_before(root, (6, 9)),
    )


def _is_before(root: Root, release: tuple[int, int]) -> bool:
    """Whether the tree says that its kernel is older."""
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", _text(root, "/proc/sys/kernel/osrelease") or "")
    return found is not None and (int(found[1]), int(found[2])) < release


def _text(root: Root, path: str) -> str | None:
    try:
        return root.read_text(path).strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _malformed(root: Root, path: str, what: str, text: str) -> OSError:
    return OSError(errno.EBADMSG, f"is no {what}: {text[:40]!r}", root.name(path))


def _list(root: Root, path: str, limit: int = _MOST_CPUS) -> frozenset[int] | None:
    text = _text(root, path)
    try:
        return None if text is None else nodelist.parse(text, limit)
    except ValueError:
        raise _malformed(root, path, f"list of numbers below {limit}", text or "") from None


def _mask(root: Root, path: str) -> frozenset[int] | None:
    text = _text(root, path)
    if not text:
        return None
    if len(text) > _MOST_CPUS or not re.fullmatch("[0-9a-f]{1,8}(,[0-9a-f]{1,8})*", text):
        raise _malformed(root, path, "mask", text)
    return nodelist.parse_mask(text)


def _row(root: Root, path: str) -> list[int]:
    text = _text(root, path) or ""
    if not re.fullmatch(r"(?:[0-9]{1,9}(?:\s+|$))*", text, re.ASCII):
        raise _malformed(root, path, "row of distances", text)
    return [int(word) for word in text.split()]


def _names(root: Root, path: str) -> list[str]:
    try:
        return sorted(os.listdir(root.name(path)))  # noqa: PTH208 - names, as sysfs has them
    except (FileNotFoundError, NotADirectoryError):
        return []


def _numbered(root: Root, path: str, word: str) -> list[int]:
    """N of each entry `wordN`, ascending."""
    return sorted(int(match[1]) for name in _names(root, path) if (match := re.fullmatch(word + "([0-9]{1,9})", name)))


def _online(root: Root) -> list[int]:
    online = _list(root, f"{NODES}/online", MAX_NUMNODES)
    return _numbered(root, NODES, "node") if online is None else sorted(online)


def _node(root: Root, number: int, online: list[int], with_memory: frozenset[int] | None, tier: int | None) -> Node:
    folder = f"{NODES}/node{number}"
    cpus = _list(root, f"{folder}/cpulist")
    if cpus is None:
        cpus = _mask(root, f"{folder}/cpumap") or frozenset()
    total = re.search(r"MemTotal:\s+([0-9]{1,15}) kB", _text(root, f"{folder}/meminfo") or "")
    memory = int(total[1]) << 10 if total else 0
    # One column for each online node, in their order (node_read_distance() in drivers/base/node.c).
    distances = dict(zip(online, _row(root, f"{folder}/distance"), strict=False))
    accesses = firmware.read(root, folder).values()
    return Node(
        id=number,
        cpus=cpus,
        memory=memory,
        distances=distances,
        bandwidth=next((access.bandwidth for access in accesses if access.bandwidth), None),
        tier=tier,
        initiators=next((access.initiators for access in accesses if access.initiators), frozenset()),
        has_memory=memory > 0 if with_memory is None else number in with_memory,
    )


def _tiers(root: Root) -> dict[int, int]:
    found: dict[int, int] = {}
    for tier in _numbered(root, TIERS, "memory_tier"):
        for node in _list(root, f"{TIERS}/memory_tier{tier}/nodelist", MAX_NUMNODES) or ():
            found[node] = tier
    return found


def kernel_table(root: Root) -> tuple[dict[int, int] | None, bool | None]:
    """`Machine.kernel_weights` and `Machine.kernel_auto`, now."""
    numbers = _numbered(root, WEIGHTS, "node")
    weights: dict[int, int] = {}
    for number in numbers:
        text = _text(root, f"{WEIGHTS}/node{number}")
        if text and re.fullmatch("[0-9]{1,3}", text):
            weights[number] = int(text)
    auto = _text(root, f"{WEIGHTS}/auto")
    return weights or None, None if auto is None else auto in ("true", "Y", "y", "1")


def _packages(root: Root) -> dict[int, int]:
    found: dict[int, int] = {}
    for cpu in _numbered(root, CPUS, "cpu"):
        text = _text(root, f"{CPUS}/cpu{cpu}/topology/physical_package_id")
        # -1 where the architecture does not tell.
        if text and re.fullmatch("[0-9]{1,9}", text):
            found[cpu] = int(text)
    return found
