"""The guest is the machine that the other tests in this folder take it for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

NODES = Path("/sys/devices/system/node")
CGROUPS = Path("/sys/fs/cgroup")


def memory_total_mib(node: int) -> int:
    for line in (NODES / f"node{node}/meminfo").read_text().splitlines():
        if "MemTotal:" in line:
            return int(line.split()[-2]) >> 10
    raise AssertionError(f"node{node} says nothing of its memory")


def test_two_nodes_have_memory() -> None:
    assert (NODES / "has_memory").read_text().strip() == "0-1"
    # The kernel keeps a part of each for itself.
    assert 1400 <= memory_total_mib(0) <= 1536
    assert 960 <= memory_total_mib(1) <= 1024


def test_only_the_first_has_cpus() -> None:
    assert (NODES / "has_cpu").read_text().strip() == "0"
    assert (NODES / "node0/cpulist").read_text().strip() == "0-1"
    assert (NODES / "node1/cpulist").read_text().strip() == ""


@pytest.mark.parametrize(("node", "mib_per_second", "nanoseconds"), [(0, 200 << 10, 100), (1, 50 << 10, 250)])
def test_bandwidth_and_latency_are_told(node: int, mib_per_second: int, nanoseconds: int) -> None:
    folder = NODES / f"node{node}/access0/initiators"
    for way in ("read", "write"):
        assert int((folder / f"{way}_bandwidth").read_text()) == mib_per_second
        assert int((folder / f"{way}_latency").read_text()) == nanoseconds


def test_distances() -> None:
    assert (NODES / "node0/distance").read_text().split() == ["10", "20"]
    assert (NODES / "node1/distance").read_text().split() == ["20", "10"]


def test_kernel_weights_are_equal() -> None:
    weights = Path("/sys/kernel/mm/mempolicy/weighted_interleave")
    assert {path.name: path.read_text().strip() for path in weights.glob("node*")} == {"node0": "1", "node1": "1"}


def test_cgroup2_has_memory_and_cpuset() -> None:
    assert "cgroup2" in subprocess.check_output(
        ["findmnt", "--noheadings", "--output", "FSTYPE", str(CGROUPS)], text=True
    )
    assert {"memory", "cpuset"} <= set((CGROUPS / "cgroup.subtree_control").read_text().split())
    group = CGROUPS / "lab-probe"
    group.mkdir()
    try:
        assert (group / "memory.numa_stat").exists()
        (group / "cpuset.mems").write_text("1")
        assert (group / "cpuset.mems.effective").read_text().strip() == "1"
    finally:
        group.rmdir()


def test_numactl_places_pages() -> None:
    assert "available: 2 nodes (0-1)" in subprocess.check_output(["numactl", "--hardware"], text=True)
    on_one = subprocess.check_output(["numactl", "--membind=1", "cat", "/proc/self/numa_maps"], text=True)
    assert any("bind:1" in line and "N1=" in line for line in on_one.splitlines())


def test_numa_balancing_is_off() -> None:
    assert Path("/proc/sys/kernel/numa_balancing").read_text().strip() == "0"
    assert "nokaslr" in Path("/proc/cmdline").read_text().split()


def test_systemd_is_the_init() -> None:
    assert Path("/proc/1/comm").read_text().strip() == "systemd"
    failed = subprocess.check_output(["systemctl", "list-units", "--failed", "--no-legend", "--plain"], text=True)
    assert failed == ""


def test_redis_is_there_and_not_running() -> None:
    assert Path("/usr/bin/redis-server").exists()
    state = subprocess.run(["systemctl", "is-active", "redis-server"], capture_output=True, text=True, check=False)
    assert state.stdout.strip() == "inactive"
