"""Builds the files below /sys that describe a machine's nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FakeNode:
    """None leaves the file out, as a kernel or firmware without it does."""

    cpus: str = ""
    memory_kib: int = 1 << 20
    bandwidth: tuple[int, int] | None = None
    initiators: Sequence[int] = ()
    access: str = "access1"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def build(
    top: Path,
    nodes: Mapping[int, FakeNode],
    distances: Mapping[int, Sequence[int]] | None = None,
    tiers: Mapping[int, str] | None = None,
    weights: Mapping[int, int] | None = None,
    auto: str | None = None,
    packages: Mapping[int, int] | None = None,
) -> Path:
    """`distances` are rows by node; `packages` is the socket of each CPU. Gives `top`."""
    base = top / "sys/devices/system/node"
    listed = ",".join(map(str, sorted(nodes)))
    write(base / "online", listed)
    write(base / "has_memory", ",".join(str(number) for number, node in sorted(nodes.items()) if node.memory_kib))
    for number, node in nodes.items():
        folder = base / f"node{number}"
        write(folder / "cpulist", node.cpus)
        write(folder / "meminfo", f"Node {number} MemTotal:       {node.memory_kib} kB\nNode {number} MemFree: 1 kB")
        if distances:
            write(folder / "distance", " ".join(map(str, distances[number])))
        if node.bandwidth is not None:
            read, wrote = node.bandwidth
            write(folder / node.access / "initiators/read_bandwidth", str(read))
            write(folder / node.access / "initiators/write_bandwidth", str(wrote))
        for initiator in node.initiators:
            (folder / node.access / f"initiators/node{initiator}").mkdir(parents=True)
    for tier, members in (tiers or {}).items():
        write(top / f"sys/devices/virtual/memory_tiering/memory_tier{tier}/nodelist", members)
    for number, weight in (weights or {}).items():
        write(top / f"sys/kernel/mm/mempolicy/weighted_interleave/node{number}", str(weight))
    if auto is not None:
        write(top / "sys/kernel/mm/mempolicy/weighted_interleave/auto", auto)
    for cpu, package in (packages or {}).items():
        write(top / f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", str(package))
    return top


DRAM_AND_CXL = {
    0: FakeNode("0-1", 1536 << 10, (200000, 200000), (0,)),
    1: FakeNode("", 1024 << 10, (50000, 50000), (0,)),
}
