"""`hetmemctl weights`: firmware's figures, the kernel's table, what policies come to; and `--measure`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from hetmemd import settings
from hetmemd.ctl.text import Answer, Paint, table
from hetmemd.kernel import nodelist
from hetmemd.kernel.root import Root
from hetmemd.machine import caches, topology
from hetmemd.memory.headroom import Headroom
from hetmemd.policy import survey
from hetmemd.policy.faults import printable

LEAST = 4 << 20
"""Bytes; a node with less room is not measured."""
USUAL = 512 << 20
"""Bytes to measure with where the caches ask for no more, or nothing is known of them."""


def shown(root: Root) -> dict[str, Any]:
    """`survey` with that machine's settings. `OSError`."""
    try:
        setting = settings.load(root).kernel.weights
    except settings.SettingsError:
        setting = "leave"  # the daemon goes on with what it had; `check` names the faults
    return survey.survey(root, setting)


def measured(root: Root, size: int | None, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """Each node with memory from each socket, one after the other. `tell` hears of each before it begins.

    `size` in bytes; None for as much as the caches ask for. At most half of what a node has free is taken, so that
    nobody is pushed out of it.
    """
    from hetmemd.machine import measure  # noqa: PLC0415 - numpy: the rest of the command needs none of it

    machine = topology.read(root)
    figures = list(_figures(root, machine, size, seconds, tell))
    weights = measure.proposed(machine, figures)
    return {
        "measured": [{**asdict(figure), "cpus": sorted(figure.cpus)} for figure in figures],
        "proposed": None if weights is None else survey.by_node(weights),
    }


def _figures(
    root: Root, machine: topology.Machine, size: int | None, seconds: float, tell: Callable[[str], None]
) -> Iterator[Any]:
    from hetmemd.machine import measure  # noqa: PLC0415 - as above

    headroom = Headroom(root)
    sockets = measure.sockets(machine, frozenset(os.sched_getaffinity(0)))
    for node in sorted(machine.memory_nodes):
        for socket, cpus in sockets.items():
            held = caches.total(root, cpus)
            wanted = measure.wanted(held, USUAL) if size is None else size
            room = min(wanted, headroom.room(node) * os.sysconf("SC_PAGESIZE") // 2)
            if room < LEAST:
                yield measure.Figure(node, socket, cpus, 0, note="too little of the node is free to measure it")
                continue
            less = f" (half of what is free; {wanted >> 20} MiB are wanted)" if room < wanted else ""
            tell(f"node {node} from socket {socket}: {room >> 20} MiB{less}, 3 x {seconds:g} s")
            yield measure.measure(node, socket, cpus, room, seconds, held)


# -- as a person reads it


def lines(told: Answer, paint: Paint) -> list[str]:
    """`told` is `shown`, with `measured` in it where that was asked for."""
    found = [paint("title", "Memory nodes"), *_nodes(told)]
    kernel = told["kernel"]
    if not kernel["known"]:
        found.append("  the kernel's table of interleave weights is not known: the tree has neither it nor the release")
    elif kernel["weights"] is None:
        found.append("  this kernel has no table of interleave weights (Linux 6.9 and later have)")
    else:
        keeper = {True: "kept by the kernel itself", False: "set by hand", None: "set by hand or as it was at boot"}
        found.append(f"  the kernel's table is {keeper[kernel['auto']]}; [kernel] weights = {_toml(told['setting'])}")
    found += ["", paint("title", "Policies with weights"), *(_policies(told["policies"], paint) or ["  none"])]
    if "measured" in told:
        found += ["", paint("title", "Measured"), *_measured(told)]
    return found


def _nodes(told: Answer) -> list[str]:
    """Firmware's figures as the kernel takes them: from the nearest CPUs."""
    ways = {
        "read_bandwidth": "READ MB/s",
        "write_bandwidth": "WRITE MB/s",
        "read_latency": "READ ns",
        "write_latency": "WRITE ns",
    }
    rows: list[tuple[str, ...]] = [("NODE", "CPUS", "MEMORY", "TIER", *ways.values(), "BY BANDWIDTH", "KERNEL")]
    for node in told["nodes"]:
        access = node.get("access1") or node.get("access0") or {}
        number = str(node["node"])
        rows.append(
            (
                number,
                nodelist.format_list(frozenset(node["cpus"])) or "none",
                f"{node['memory'] / (1 << 30):.1f} GiB",
                _or(node["tier"]),
                *(_or(access.get(way)) for way in ways),
                _or((told["bandwidth"] or {}).get(number)),
                _or((told["kernel"]["weights"] or {}).get(number)),
            )
        )
    return table(rows, right=2)


def _policies(policies: Sequence[Answer], paint: Paint) -> list[str]:
    if not policies:
        return []
    rows = [("POLICY", "STATE", "CGROUP", "ASKED", "GETS", "HOW")]
    for policy in policies:
        cgroups = policy["cgroups"]
        where = f"{policy['pattern']} (none now)" if not cgroups else cgroups[0]
        more = f" and {len(cgroups) - 1} more" if len(cgroups) > 1 else ""
        gets = " ".join(f"{node}={weight}" for node, weight in policy["weights"].items()) or "-"
        place = f"{policy['file']}:{policy['line']}"
        rows.append((place, policy["state"], where + more, _toml(policy["asked"]), gets, policy["met"]))
    return table(rows, paint, coloured=1)


def _measured(told: Answer) -> list[str]:
    rows: list[tuple[str, ...]] = [("NODE", "SOCKET", "CPUS", "MEMORY", "READ GB/s", "WRITE GB/s", "COPY GB/s", "")]
    for figure in told["measured"]:
        rows.append(
            (
                str(figure["node"]),
                str(figure["socket"]),
                nodelist.format_list(frozenset(figure["cpus"])),
                f"{figure['size'] >> 20} MiB",
                *("-" if figure[way] is None else f"{figure[way] / 1e9:.1f}" for way in ("read", "write", "copy")),
                printable(figure["note"]),
            )
        )
    found = table(rows)
    if told["proposed"] is None:
        return [*found, "  not every node has figures of its memory, so no weights are proposed"]
    weights = _toml(told["proposed"])
    return [
        *found,
        "",
        "# By the kernel's reduction of these figures; for /etc/hetmemd.toml, and so for every policy:",
        "[kernel]",
        f"weights = {weights}",
        "# or for one policy, below its [[policy]]:",
        f"# weights = {weights}",
    ]


def _toml(weights: str | Answer) -> str:
    if isinstance(weights, str):
        return f'"{weights}"'
    return "{ " + ", ".join(f"{_key(named)} = {weight}" for named, weight in weights.items()) + " }"


def _key(named: str) -> str:
    """TOML takes letters, digits, - and _ without quotes."""
    return named if named.replace("-", "").replace("_", "").isalnum() else f'"{named}"'


def _or(value: int | None) -> str:
    return "-" if value is None else str(value)
