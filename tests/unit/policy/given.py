"""What the tests of policies start from: machines, tables from TOML text, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from hetmemd.machine.topology import Machine, Node
from hetmemd.policy.effective import Effective, Handling
from hetmemd.policy.language import Table
from hetmemd.policy.parse import parse
from hetmemd.policy.resolve import CgroupFacts, resolve

ETC = "/etc/hetmemd.d"


def machine(
    *nodes: tuple[str, int | None],
    table: dict[int, int] | None = None,
    tiers: Mapping[int, int] | None = None,
    memoryless: Iterable[int] = (),
) -> Machine:
    """Nodes as (CPUs, MB/s); a CPU-less one is nearest to the node of the same place in the first half."""
    found: dict[int, Node] = {}
    with_cpus = [number for number, (cpus, _) in enumerate(nodes) if cpus]
    without = [number for number, (cpus, _) in enumerate(nodes) if not cpus]
    for number, (cpus, bandwidth) in enumerate(nodes):
        best = number if cpus else with_cpus[without.index(number) % len(with_cpus)]
        found[number] = Node(
            number,
            frozenset(map(int, cpus.split(","))) if cpus else frozenset(),
            1 << 30,
            bandwidth=bandwidth,
            tier=(tiers or {}).get(number),
            initiators=frozenset({best}),
            has_memory=number not in memoryless,
        )
    return Machine(found, table)


DRAM_CXL = machine(("0,1", 300), ("", 100), table={0: 3, 1: 1}, tiers={0: 4, 1: 22})
TWO_SOCKETS = machine(("0,1", 300), ("2,3", 300), ("", 100), ("", 100), table={0: 3, 1: 3, 2: 1, 3: 1})


def tables(text: str, name: str = "50-test.toml", directory: str = ETC) -> tuple[Table, ...]:
    parsed = parse(text.encode(), f"{directory}/{name}")
    assert not parsed.faults, parsed.faults
    return parsed.tables


def policy(cgroup: str, mode: str = "bind", nodes: str = "all", **more: object) -> str:
    """A table as text; values beyond the first three are Python's, written as TOML."""
    lines = ["[[policy]]", f"cgroup = '{cgroup}'"]
    if mode:
        lines.append(f'mode = "{mode}"')
        if mode not in ("default", "local"):
            lines.append(f'nodes = "{nodes}"')
    for key, value in more.items():
        lines.append(f"{key} = {str(value).lower() if isinstance(value, bool) else toml(value)}")
    return "\n".join(lines) + "\n"


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{key}" = {toml(each)}' for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def tree(*paths: str, **facts: CgroupFacts) -> dict[str, CgroupFacts]:
    return dict.fromkeys(paths, CgroupFacts()) | facts


def above(path: str) -> list[str]:
    found = [path]
    while found[-1] != "/":
        found.append(found[-1].rpartition("/")[0] or "/")
    return found


def resolved(
    path: str,
    given: Iterable[Table] | str,
    on: Machine = DRAM_CXL,
    facts: Mapping[str, CgroupFacts] | None = None,
    defaults: Handling | None = None,
) -> Effective:
    """What one cgroup comes to under these tables."""
    cgroups = dict.fromkeys(above(path), CgroupFacts()) | dict(facts or {})
    chosen = tables(given) if isinstance(given, str) else tuple(given)
    return resolve(cgroups, chosen, on, defaults)[path]


def nodes_of(effective: Effective) -> set[int]:
    assert effective.placement is not None, effective.notes
    return set(effective.placement.mempolicy.nodes)


def mode_of(effective: Effective) -> str:
    assert effective.placement is not None, effective.notes
    return effective.placement.mempolicy.mode.word


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
