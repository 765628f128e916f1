from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from tests.unit.machine.sysfs import DRAM_AND_CXL, FakeNode, build, write


def test_everything_that_sysfs_tells(tmp_path: Path) -> None:
    build(
        tmp_path,
        DRAM_AND_CXL,
        distances={0: (10, 20), 1: (20, 10)},
        tiers={4: "0", 22: "1"},
        weights={0: 4, 1: 1},
        auto="true",
        packages={0: 0, 1: 0},
    )
    machine = topology.read(Root(tmp_path))
    dram, cxl = machine.nodes[0], machine.nodes[1]
    assert dram.cpus == {0, 1} and cxl.cpus == frozenset()
    assert (dram.memory, cxl.memory) == (1536 << 20, 1024 << 20)
    assert cxl.distances == {0: 20, 1: 10}
    assert (dram.bandwidth, cxl.bandwidth) == (200000, 50000)
    assert (dram.tier, cxl.tier) == (4, 22)
    assert cxl.initiators == {0}
    assert machine.memory_nodes == {0, 1}
    assert machine.kernel_weights == {0: 4, 1: 1} and machine.kernel_auto is True
    assert machine.packages == {0: 0, 1: 0}


def test_what_is_not_told_is_absent(tmp_path: Path) -> None:
    build(tmp_path, {0: FakeNode("0")})
    machine = topology.read(Root(tmp_path))
    node = machine.nodes[0]
    assert (node.bandwidth, node.tier, node.initiators, node.distances) == (None, None, frozenset(), {})
    assert machine.kernel_weights is None and machine.kernel_auto is None


def test_a_kernel_without_numa_has_no_nodes(tmp_path: Path) -> None:
    assert topology.read(Root(tmp_path)).nodes == {}


def test_bandwidth_is_the_lesser_way_and_of_the_cpus(tmp_path: Path) -> None:
    build(tmp_path, {0: FakeNode("0", bandwidth=(100, 90))})
    write(tmp_path / "sys/devices/system/node/node0/access0/initiators/read_bandwidth", "500")
    write(tmp_path / "sys/devices/system/node/node0/access0/initiators/write_bandwidth", "500")
    assert topology.read(Root(tmp_path)).nodes[0].bandwidth == 90


def test_bandwidth_of_class_0_serves_where_it_is_the_only_one(tmp_path: Path) -> None:
    build(tmp_path, {0: FakeNode("0", bandwidth=(100, 90), access="access0")})
    assert topology.read(Root(tmp_path)).nodes[0].bandwidth == 90


def test_a_bandwidth_of_zero_is_no_figure(tmp_path: Path) -> None:
    build(tmp_path, {0: FakeNode("0", bandwidth=(100, 0))})
    assert topology.read(Root(tmp_path)).nodes[0].bandwidth is None


def test_nodes_without_memory_are_no_memory_nodes(tmp_path: Path) -> None:
    build(tmp_path, {0: FakeNode("0", memory_kib=0), 1: FakeNode("")})
    assert topology.read(Root(tmp_path)).memory_nodes == {1}


def test_holes_in_the_numbering_keep_distances_right(tmp_path: Path) -> None:
    build(tmp_path, {0: FakeNode("0"), 3: FakeNode("1")}, distances={0: (10, 31), 3: (31, 10)})
    assert topology.read(Root(tmp_path)).nodes[0].distances == {0: 10, 3: 31}


def test_a_collected_tree_may_lack_the_lists(tmp_path: Path) -> None:
    build(tmp_path, DRAM_AND_CXL)
    base = tmp_path / "sys/devices/system/node"
    (base / "online").unlink()
    (base / "has_memory").unlink()
    (base / "node0/cpulist").unlink()
    write(base / "node0/cpumap", "00000000,00000003")
    machine = topology.read(Root(tmp_path))
    assert machine.memory_nodes == {0, 1}
    assert machine.nodes[0].cpus == {0, 1}


TWO_SOCKETS = {
    0: FakeNode("0-1", initiators=(0,)),
    1: FakeNode("2-3", initiators=(1,)),
    2: FakeNode("", initiators=(0,)),
    3: FakeNode("", initiators=(1,)),
}


@pytest.mark.parametrize(
    ("cpus", "nodes"),
    [({0}, {0, 2}), ({2, 3}, {1, 3}), ({1, 2}, {0, 1, 2, 3}), (set(), set())],
)
def test_nearest_is_by_socket_with_its_memory_only_nodes(tmp_path: Path, cpus: set[int], nodes: set[int]) -> None:
    build(tmp_path, TWO_SOCKETS, packages={0: 0, 1: 0, 2: 1, 3: 1})
    assert topology.read(Root(tmp_path)).nearest(frozenset(cpus)) == nodes


def test_a_socket_may_hold_several_nodes(tmp_path: Path) -> None:
    build(tmp_path, TWO_SOCKETS, packages={0: 0, 1: 0, 2: 0, 3: 0})
    assert topology.read(Root(tmp_path)).nearest(frozenset({0})) == {0, 1, 2, 3}


def test_without_firmware_figures_distance_tells_the_initiator(tmp_path: Path) -> None:
    nodes = {0: FakeNode("0"), 1: FakeNode("1"), 2: FakeNode("")}
    build(tmp_path, nodes, distances={0: (10, 20, 40), 1: (20, 10, 17), 2: (40, 17, 10)})
    machine = topology.read(Root(tmp_path))
    assert machine.best_initiators(2) == {1}
    assert machine.nearest(frozenset({0})) == {0}
    assert machine.nearest(frozenset({1})) == {1, 2}


def test_this_machine_can_be_read() -> None:
    machine = topology.read(Root())
    assert all(node.memory > 0 for node in machine.nodes.values() if node.has_memory)


GARBAGE = ["x", "1-", "3-1", "9" * 11, "9" * 5000, "\0", "\u00b2", "-1", "0x1", "0 1", ",", "nan", "zz" * 20]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(
    "file",
    [
        "devices/system/node/online",
        "devices/system/node/has_memory",
        "devices/system/node/node0/cpulist",
        "devices/virtual/memory_tiering/memory_tier4/nodelist",
    ],
)
def test_a_list_that_no_kernel_writes_is_an_error_with_its_file(tmp_path: Path, file: str, garbage: str) -> None:
    build(tmp_path, DRAM_AND_CXL)
    write(tmp_path / "sys" / file, garbage)
    with pytest.raises(OSError) as error:
        topology.read(Root(tmp_path))
    assert error.value.filename == str(tmp_path / "sys" / file)
    assert error.value.strerror is not None and len(error.value.strerror) < 100


@pytest.mark.parametrize(
    ("file", "garbage"),
    [
        ("distance", "10 x"),
        ("distance", "10 " + "9" * 5000),
        ("distance", "\u00b2"),
        ("cpumap", "xyz"),
        ("cpumap", "f" * 100_000),
    ],
)
def test_what_else_no_kernel_writes(tmp_path: Path, file: str, garbage: str) -> None:
    build(tmp_path, DRAM_AND_CXL)
    node = tmp_path / "sys/devices/system/node/node1"
    if file == "cpumap":
        (node / "cpulist").unlink()
    write(node / file, garbage)
    with pytest.raises(OSError) as error:
        topology.read(Root(tmp_path))
    assert error.value.filename == str(node / file)


@pytest.mark.parametrize("garbage", [each for each in GARBAGE if each != "9" * 11])
def test_a_figure_that_is_no_number_is_not_told(tmp_path: Path, garbage: str) -> None:
    build(tmp_path, DRAM_AND_CXL, weights={0: 1, 1: 1}, packages={0: 0})
    node = tmp_path / "sys/devices/system/node/node0"
    write(node / "access1/initiators/read_bandwidth", garbage)
    write(node / "meminfo", f"Node 0 MemTotal: {garbage} kB")
    write(tmp_path / "sys/kernel/mm/mempolicy/weighted_interleave/node0", garbage)
    write(tmp_path / "sys/devices/system/cpu/cpu0/topology/physical_package_id", garbage)
    machine = topology.read(Root(tmp_path))
    assert (machine.nodes[0].bandwidth, machine.nodes[0].memory) == (None, 0)
    assert (machine.kernel_weights, machine.packages) == ({1: 1}, {})


@pytest.mark.parametrize(
    ("release", "table", "known"),
    [
        ("6.1.0-18-amd64", {}, True),
        ("6.9.0", {}, False),
        ("6.12.1", {}, False),
        ("5.10", {}, True),
        ("garbage", {}, False),
        (None, {}, False),
        (None, {0: 1}, True),
    ],
)
def test_whether_the_kernels_weights_are_known(
    tmp_path: Path, release: str | None, table: dict[int, int], known: bool
) -> None:
    """A tree that lacks the table was collected without it, or on a kernel that has none: its release tells."""
    build(tmp_path, DRAM_AND_CXL, weights=table)
    if release is not None:
        write(tmp_path / "proc/sys/kernel/osrelease", release)
    assert topology.read(Root(tmp_path)).knows_weights == known
