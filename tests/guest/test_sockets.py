"""Machines with more than two nodes: selectors and weights, seen on real pages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HERE
from tests.guest.daemon import CGROUPS, Child, Group, drop, eventually, metrics, shown, told
from tests.running import running

TWO = pytest.mark.lab(kernel="newest", topology="two-sockets")
THREE = pytest.mark.lab(topology="dram+cxl+cxl")

pytestmark = pytest.mark.usefixtures("service")


def written(cgroup: str, *lines: str) -> str:
    return "\n".join(["[[policy]]", f'cgroup = "{cgroup}"', *lines, ""])


def spread(group: Group, weights: dict[int, int], *lines: str) -> None:
    """A program of 96 MiB in the group comes to these weights."""
    child = Child(96, "small", group)
    try:
        drop("50-test.toml", written(group.path, *lines))
        total = sum(weights.values())
        explained = told("explain", group.path)
        eventually("known", lambda: told("explain", group.path)["state"] == "active")
        explained = told("explain", group.path)
        assert explained["effective"]["nodes"] == sorted(weights)
        nodes = {node: weight / total for node, weight in weights.items()}
        eventually(
            f"pages lie {weights}",
            lambda: all(abs(child.shares().get(node, 0) - nodes.get(node, 0)) < 0.02 for node in range(4)),
        )
        assert child.intact()
    finally:
        child.close()


@TWO
def test_bandwidth_of_two_sockets_is_the_kernels_own(group: Group) -> None:
    spread(group, {0: 4, 1: 4, 2: 1, 3: 1}, 'mode = "weighted-interleave"', 'nodes = "all"', 'weights = "bandwidth"')


@TWO
def test_weights_by_selector_go_to_each_of_its_nodes(group: Group) -> None:
    spread(
        group,
        {0: 3, 1: 3, 2: 1, 3: 1},
        'mode = "weighted-interleave"',
        'nodes = "dram+cpuless"',
        "weights = { dram = 3, cpuless = 1 }",
    )


@TWO
def test_nearest_follows_the_cpus_of_the_cgroup(group: Group) -> None:
    """The nodes of the socket that its CPUs touch, with the CPU-less ones whose best initiator that is."""
    for folder in (CGROUPS, CGROUPS / "test.slice"):
        (folder / "cgroup.subtree_control").write_text("+cpuset")
    cpus = group.folder / "cpuset.cpus"
    cpus.write_text("1")
    child = Child(64, "small", group)
    try:
        drop("50-test.toml", written(group.path, 'mode = "interleave"', 'nodes = "nearest"'))
        eventually("socket 1", lambda: shown(child.pid) == "interleave=static:1,3")
        eventually("pages there", lambda: abs(child.shares().get(3, 0) - 0.5) < 0.03)
        cpus.write_text("0")
        eventually("socket 0", lambda: shown(child.pid) == "interleave=static:0,2")
        eventually("pages there", lambda: abs(child.shares().get(2, 0) - 0.5) < 0.03)
        assert child.intact()
    finally:
        child.close()


@TWO
@THREE
def test_tiers_are_the_kernels(group: Group) -> None:
    """Tier numbers are the kernel's; the fastest tier is DRAM."""
    tiers = {tier: nodes for tier, nodes in tiers_of_sysfs().items() if nodes}
    assert len(tiers) > 1, tiers
    slow = max(tiers)
    weights = dict.fromkeys(tiers[slow], 1)
    spread(group, weights, 'mode = "interleave"', f'nodes = "tier:{slow}"')


def tiers_of_sysfs() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for folder in Path("/sys/devices/virtual/memory_tiering").glob("memory_tier*"):
        text = (folder / "nodelist").read_text().strip()
        nodes: list[int] = []
        for part in filter(None, text.split(",")):
            first, _, last = part.partition("-")
            nodes += range(int(first), int(last or first) + 1)
        found[int(folder.name.removeprefix("memory_tier"))] = nodes
    return found


@THREE
def test_bandwidth_of_two_expanders_that_differ(group: Group) -> None:
    """200, 50 and 25 GB/s."""
    assert HERE and "cxl+cxl" in HERE
    spread(group, {0: 23, 1: 5, 2: 2}, 'mode = "weighted-interleave"', 'nodes = "all"', 'weights = "bandwidth"')


@THREE
def test_preferred_many_and_bind_on_the_expanders(group: Group) -> None:
    child = Child(64, "small", group)
    try:
        drop("50-test.toml", written(group.path, 'mode = "bind"', 'nodes = "cpuless"'))
        eventually("bound", lambda: shown(child.pid) == "bind=static:1-2")
        eventually("no page on node 0", lambda: child.shares().get(0, 0) < 0.02)
        drop("50-test.toml", written(group.path, 'mode = "preferred-many"', 'nodes = "0,2"'))
        eventually("changed", lambda: shown(child.pid) == "prefer (many)=static:0,2")
        eventually("no page on node 1", lambda: child.shares().get(1, 0) < 0.02)
        assert child.intact()
    finally:
        child.close()


# Memory of which one page is touched at first, and all of it when a line comes.
TOUCHED_LATER = """
import ctypes, mmap, sys
area = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
area[0] = 1
print(f"{ctypes.addressof(ctypes.c_char.from_buffer(area)):x}", flush=True)
for line in sys.stdin:
    for place in range(0, len(area), 4096):
        area[place] = 1
    print(flush=True)
"""


@THREE
@pytest.mark.parametrize("home", [1, 2])
def test_new_pages_begin_at_the_home_node(group: Group, home: int) -> None:
    """Whatever is nearest to the processor that touches them: 2 is no further than 1, and never the first without."""
    command = [sys.executable, "-c", TOUCHED_LATER]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
        assert popen.stdin and popen.stdout
        start = popen.stdout.readline().strip()

        def region() -> str:
            lines = Path(f"/proc/{popen.pid}/numa_maps").read_text().splitlines()
            return next(line for line in lines if line.split()[0] == start)

        bound = metrics()["hetmemd_regions_bound_total"]
        group.take(popen.pid)
        drop(
            "50-test.toml",
            written(
                group.path, 'mode = "bind"', 'nodes = "cpuless"', f"home_node = {home}", 'memory = ["heap", "anon"]'
            ),
        )
        # The home node comes after the policy, and is shown nowhere.
        eventually("all is bound", lambda: metrics()["hetmemd_regions_bound_total"] > bound)
        assert region().split()[1] == "bind=static:1-2"
        popen.stdin.write("touch\n")
        popen.stdin.flush()
        popen.stdout.readline()
        placed = {int(node): int(pages) for node, pages in re.findall(r" N(\d+)=(\d+)", region())}
        # The first page of all may have been on node 0, and has moved to the nearest by now or not.
        assert placed[home] >= 2047
