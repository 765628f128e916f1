"""A program that is treated while it runs ends where one ends that was launched under the policy.

`numactl --weighted-interleave` is younger than Debian 12's numactl: a launcher of three lines stands in for it, which
makes the same call, set_mempolicy(2), and becomes the program.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.guest.daemon import Group, drop, eventually, metrics, pages_by_node, policy, shown, systemctl

pytestmark = [pytest.mark.lab, pytest.mark.lab(kernel="newest")]
CHILD = Path(__file__).with_name("memory_child.py")
TABLE = Path("/sys/kernel/mm/mempolicy/weighted_interleave")
# MPOL_WEIGHTED_INTERLEAVE over nodes 0 and 1; set_mempolicy is 238 on x86-64.
LAUNCHER = """
import ctypes, os, sys
mask = ctypes.c_ulong(3)
assert not ctypes.CDLL(None, use_errno=True).syscall(238, 6, ctypes.byref(mask), 65), ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"""
Task = subprocess.Popen[str]


@pytest.fixture
def service() -> Generator[None, None, None]:
    """With the kernel's table as the policy has it, so that new pages come in its ratio as well."""
    for node, weight in ((0, "3"), (1, "1")):
        (TABLE / f"node{node}").write_text(weight)
    systemctl("start", "hetmemd")
    yield
    Path("/etc/hetmemd.d/50-launch.toml").unlink(missing_ok=True)
    systemctl("stop", "hetmemd")
    for node in (0, 1):
        (TABLE / f"node{node}").write_text("1")


@pytest.fixture
def group() -> Generator[Group, None, None]:
    group = Group("/launch")
    yield group
    group.remove()


def start(*before: str) -> Task:
    command = [*before, sys.executable, str(CHILD), "128", "small"]
    popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert popen.stdout
    assert popen.stdout.readline()
    return popen


def far_share(popen: Task) -> float:
    placed = pages_by_node(popen.pid)
    return placed[1] / placed.total()


@pytest.mark.usefixtures("service")
def test_treated_and_launched_end_alike(group: Group) -> None:
    launched, plain = start(sys.executable, "-c", LAUNCHER), start()
    try:
        assert shown(launched.pid) == "weighted interleave:0-1"
        assert shown(plain.pid) == "default"
        assert far_share(plain) < 0.01
        drop("50-launch.toml", policy(group.path))
        group.take(plain.pid)
        # The same mode on the same nodes; static besides, so that a cpuset's narrowing is not for good (I6).
        eventually("the policy holds", lambda: shown(plain.pid) == "weighted interleave=static:0-1")
        # Python's own pages were there before the area, and are in the ratio as well.
        try:
            eventually("the ratio holds", lambda: abs(far_share(plain) - far_share(launched)) < 0.005)
        except AssertionError as error:
            told = subprocess.run(["hetmemctl", "explain", str(plain.pid)], capture_output=True, text=True, check=False)
            raise AssertionError(f"{far_share(plain)}, {far_share(launched)}, {told.stdout}") from error
        assert abs(far_share(launched) - 0.25) < 0.005
        # One that was launched under the policy is as it should be: nothing is moved for it.
        name = 'hetmemd_moved_pages_total{source_node="0",target_node="1"}'
        at = "hetmemd_snapshot_timestamp_seconds"
        moved = metrics()[name]
        group.take(launched.pid)
        eventually("it is taken up", lambda: shown(launched.pid) == "weighted interleave:0-1" and metrics()[at] > 0)
        measured = metrics()[at]
        eventually("and measured", lambda: metrics()[at] > measured)
        assert metrics()[name] - moved < 100
        for popen in (plain, launched):
            assert popen.communicate(timeout=60)[0].strip() == "intact"
    finally:
        for popen in (plain, launched):
            popen.kill()
            popen.communicate()
