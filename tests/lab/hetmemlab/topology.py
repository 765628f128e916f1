"""A guest's memory nodes, from a small JSON file to QEMU's command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "topologies"


class TopologyError(Exception):
    """A topology that is not there, or that no machine could have."""


@dataclass(frozen=True)
class Node:
    """One memory node: size in MiB, and either CPUs (`"0-1"`) or the node whose CPUs reach it first."""

    memory_mib: int
    cpus: str | None
    initiator: int | None


@dataclass(frozen=True)
class Access:
    """What HMAT says of one initiator and target: nanoseconds, and bytes per second as QEMU writes them (`200G`)."""

    initiator: int
    target: int
    latency_ns: int
    bandwidth: str


@dataclass(frozen=True)
class Topology:
    """All nodes of a guest, the distances between them (10 is local) and what HMAT says."""

    name: str
    cpus: int
    sockets: int
    nodes: tuple[Node, ...]
    distances: tuple[tuple[int, ...], ...]
    access: tuple[Access, ...]

    @property
    def memory_mib(self) -> int:
        """The memory of all nodes together, MiB."""
        return sum(node.memory_mib for node in self.nodes)


def names(folder: Path = FOLDER) -> list[str]:
    """The topologies that can be asked for."""
    return sorted(path.stem for path in folder.glob("*.json"))


def load(name: str, folder: Path = FOLDER) -> Topology:
    """Read the topology of that name; TopologyError when there is none or it contradicts itself."""
    path = folder / f"{name}.json"
    if "/" in name or not path.is_file():
        raise TopologyError(f"no topology {name!r}; there are: {', '.join(names(folder))}")
    try:
        return parse(name, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise TopologyError(f"{path}: {error!r}") from error
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from error


def parse(name: str, data: dict[str, Any]) -> Topology:
    """Make a topology of a file's content, checked for what QEMU would refuse less clearly."""
    topology = Topology(
        name=name,
        cpus=int(data["cpus"]),
        sockets=int(data.get("sockets", 1)),
        nodes=tuple(Node(int(node["memory_mib"]), node.get("cpus"), node.get("initiator")) for node in data["nodes"]),
        distances=tuple(tuple(int(cell) for cell in row) for row in data["distances"]),
        access=tuple(
            Access(int(item["initiator"]), int(item["target"]), int(item["latency_ns"]), str(item["bandwidth"]))
            for item in data["access"]
        ),
    )
    _check(topology)
    return topology


def _check(topology: Topology) -> None:
    count = len(topology.nodes)
    with_cpus = {number for number, node in enumerate(topology.nodes) if node.cpus is not None}
    for number, node in enumerate(topology.nodes):
        if (node.cpus is None) == (node.initiator is None):
            raise TopologyError(f"node {number} needs either cpus or an initiator")
        if node.initiator is not None and node.initiator not in with_cpus:
            raise TopologyError(f"node {number} names node {node.initiator} as its initiator, which has no CPUs")
    if len(topology.distances) != count or any(len(row) != count for row in topology.distances):
        raise TopologyError(f"distances must be {count} rows of {count}")
    told = {(item.initiator, item.target) for item in topology.access}
    wanted = {(initiator, target) for initiator in with_cpus for target in range(count)}
    if told != wanted:
        raise TopologyError(f"access must name each of {sorted(wanted)}")


def qemu_arguments(topology: Topology) -> list[str]:
    """The part of QEMU's command line that makes these nodes."""
    smp = f"{topology.cpus},sockets={topology.sockets}"
    arguments = ["-smp", smp, "-m", f"{topology.memory_mib}M"]
    for number, node in enumerate(topology.nodes):
        place = f"cpus={node.cpus}" if node.cpus is not None else f"initiator={node.initiator}"
        arguments += ["-object", f"memory-backend-ram,id=m{number},size={node.memory_mib}M"]
        arguments += ["-numa", f"node,nodeid={number},memdev=m{number},{place}"]
    for source, row in enumerate(topology.distances):
        for target, distance in enumerate(row):
            if source != target:
                arguments += ["-numa", f"dist,src={source},dst={target},val={distance}"]
    for item in topology.access:
        pair = f"hmat-lb,initiator={item.initiator},target={item.target},hierarchy=memory"
        arguments += ["-numa", f"{pair},data-type=access-latency,latency={item.latency_ns}"]
        arguments += ["-numa", f"{pair},data-type=access-bandwidth,bandwidth={item.bandwidth}"]
    return arguments
