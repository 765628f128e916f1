"""Which weights every policy for weighted interleave comes to on a machine, beside what the kernel's table holds.

For `hetmemctl weights`, which asks without the daemon: reads only, live or in a collected tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hetmemd.kernel.mempolicy import Mode
from hetmemd.kernel.root import Root
from hetmemd.machine import firmware, topology, weights
from hetmemd.machine.topology import NODES, Machine, Node
from hetmemd.policy import library, placing, surroundings
from hetmemd.policy.effective import Effective, Placement
from hetmemd.policy.language import Table, Weights
from hetmemd.policy.placing import Confines
from hetmemd.policy.resolve import resolve


def survey(root: Root, setting: Weights = "leave") -> dict[str, Any]:
    """JSON-ready; bandwidths are MB/s and latencies nanoseconds, as sysfs has them. `setting` is `[kernel] weights`.

    `OSError` for what is there but unreadable.
    """
    machine = topology.read(root)
    try:
        computed = by_node(weights.bandwidth(machine, machine.memory_nodes))
    except weights.NoFiguresError:
        computed = None
    table = machine.kernel_weights
    return {
        "nodes": [_node(root, machine.nodes[number]) for number in sorted(machine.memory_nodes)],
        "bandwidth": computed,
        "kernel": {
            "weights": None if table is None else by_node(table),
            "auto": machine.kernel_auto,
            "known": machine.knows_weights,
        },
        "setting": said(setting),
        "policies": _policies(root, machine),
    }


def by_node(found: Mapping[int, int]) -> dict[str, int]:
    return {str(node): weight for node, weight in sorted(found.items())}


def said(asked: Weights) -> str | dict[str, int]:
    """Weights as the file has them."""
    return asked if isinstance(asked, str) else {named.text: weight for named, weight in asked}


def _node(root: Root, node: Node) -> dict[str, Any]:
    return {
        "node": node.id,
        "cpus": sorted(node.cpus),
        "memory": node.memory,
        "tier": node.tier,
        **{
            access: {
                "initiators": sorted(figures.initiators),
                "read_bandwidth": figures.read_bandwidth,
                "write_bandwidth": figures.write_bandwidth,
                "read_latency": figures.read_latency,
                "write_latency": figures.write_latency,
            }
            for access, figures in sorted(firmware.read(root, f"{NODES}/node{node.id}").items())
        },
    }


def _policies(root: Root, machine: Machine) -> list[dict[str, Any]]:
    """A row for each table and each set of weights that it comes to; one that reaches no cgroup now as it would."""
    found = library.load(root, keep=False)
    asking = {
        (table.file, table.line): table
        for table in found.tables
        if table.enabled and table.request is not None and table.request.mode is Mode.WEIGHTED_INTERLEAVE
    }
    if not asking:
        return []
    rows: dict[tuple[str, int, str, tuple[tuple[int, int], ...]], list[str]] = {}
    shown: dict[tuple[str, int, str, tuple[tuple[int, int], ...]], tuple[Table, Placement | None, str]] = {}
    for path, effective in resolve(surroundings.tree(root) or {}, found, machine).items():
        table = _holder(effective, asking)
        if table is not None:
            wanted = effective.wanted
            key = (table.file, table.line, effective.state, tuple(sorted(wanted.weights.items())) if wanted else ())
            rows.setdefault(key, []).append(path)
            shown[key] = (table, wanted, _why(effective.notes))
    reached = {key[:2] for key in rows}
    for place, table in asking.items():
        if place not in reached:
            assert table.request is not None
            placed = placing.place(table.request, machine, Confines(), None)
            key = (*place, "active" if placed.placement else "blocked", ())
            rows[key] = []
            shown[key] = (table, placed.wanted, _why(placed.notes))
    return [_row(*shown[key], key[2], paths, machine) for key, paths in rows.items()]


def _holder(effective: Effective, asking: Mapping[tuple[str, int], Table]) -> Table | None:
    source = effective.inherited_from or effective.own
    return asking.get((source.file, source.line)) if source else None


def _why(notes: Iterable[str]) -> str:
    return next((note for note in notes if note.startswith("blocked: ")), "")


def _row(
    table: Table, placement: Placement | None, why: str, state: str, cgroups: list[str], machine: Machine
) -> dict[str, Any]:
    assert table.request is not None
    given = placement.weights if placement else {}
    agrees = bool(given) and weights.agrees_with_kernel(machine, given)
    if not given:
        met = why or "nothing is applied"
    elif not machine.knows_weights:
        met = "by the kernel or by moving: its table of weights is not known here"
    elif machine.kernel_weights is None:
        met = "by moving: this kernel has no weighted interleave, so new pages interleave evenly (L5)"
    elif agrees:
        met = "by the kernel: its table gives the same ratio"
    else:
        met = "by moving: new pages follow the kernel's table (L5)"
    return {
        "file": table.file,
        "line": table.line,
        "pattern": table.pattern.text,
        "cgroups": cgroups,
        "asked": said(table.request.weights),
        "state": state,
        "weights": by_node(given),
        "agrees_with_kernel": agrees,
        "met": met,
    }
