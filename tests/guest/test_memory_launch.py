"""A program that is treated while it runs ends where one ends that was launched under the policy.

`numactl --weighted-interleave` is younger (2.0.19) than Debian 12's numactl, which the guest has. Where it is missing a
launcher of three lines stands in for it, which makes the same call, set_mempolicy(2), and becomes the program.

The two policies are compared by what they do: the mode, its nodes, and where pages are. Their flags differ on purpose:
hetmemd's are static, so that a cpuset's narrowing is not for good (I6).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest

from hetmemd.kernel.nodelist import format_list
from tests.guest.daemon import (
    Group,
    drop,
    eventually,
    measured_anew,
    metrics,
    pages_by_node,
    policy,
    shown,
    systemctl,
    told,
)

pytestmark = [pytest.mark.lab, pytest.mark.lab(kernel="newest", topology="two-sockets")]
CHILD = Path(__file__).with_name("memory_child.py")
TABLE = Path("/sys/kernel/mm/mempolicy/weighted_interleave")
NODES = Path("/sys/devices/system/node")
# MPOL_WEIGHTED_INTERLEAVE over nodes 0 and that one; set_mempolicy is 238 on x86-64.
LAUNCHER = """
import ctypes, os, sys
mask = ctypes.c_ulong(1 | 1 << int(sys.argv[1]))
assert not ctypes.CDLL(None, use_errno=True).syscall(238, 6, ctypes.byref(mask), 65), ctypes.get_errno()
os.execv(sys.argv[2], sys.argv[2:])
"""
Task = subprocess.Popen[str]


@cache
def far() -> int:
    """The first node without CPUs."""
    return next(node for node in range(1, 8) if not (NODES / f"node{node}/cpulist").read_text().strip())


def launcher() -> list[str]:
    usage = subprocess.run(["numactl", "--help"], capture_output=True, text=True, check=False)
    if "--weighted-interleave" in usage.stdout + usage.stderr:
        return ["numactl", f"--weighted-interleave=0,{far()}"]
    return [sys.executable, "-c", LAUNCHER, str(far())]


def mode_and_nodes(popen: Task) -> tuple[str, str]:
    """Of its policy, without flags: `weighted interleave=static:0-1` and `weighted interleave:0-1` are alike."""
    policy, _, nodes = shown(popen.pid).partition(":")
    return policy.partition("=")[0], nodes


@pytest.fixture
def service() -> Generator[None, None, None]:
    """With the kernel's table as the policy has it, so that new pages come in its ratio as well."""
    for node, weight in ((0, "3"), (far(), "1")):
        (TABLE / f"node{node}").write_text(weight)
    systemctl("start", "hetmemd")
    yield
    Path("/etc/hetmemd.d/50-launch.toml").unlink(missing_ok=True)
    systemctl("stop", "hetmemd")
    for node in (0, far()):
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
    return placed[far()] / placed.total()


@pytest.mark.usefixtures("service")
def test_treated_and_launched_end_alike(group: Group) -> None:
    nodes = format_list({0, far()})
    launched, plain = start(*launcher()), start()
    try:
        assert mode_and_nodes(launched) == ("weighted interleave", nodes)
        assert shown(plain.pid) == "default"
        assert far_share(plain) < 0.01
        drop("50-launch.toml", policy(group.path, nodes=nodes, weights={0: 3, far(): 1}))
        group.take(plain.pid)
        eventually("the policy holds", lambda: mode_and_nodes(plain) == mode_and_nodes(launched))
        # Python's own pages were there before the area, and are in the ratio as well.
        try:
            eventually("the ratio holds", lambda: abs(far_share(plain) - far_share(launched)) < 0.005)
        except AssertionError as error:
            raise AssertionError(
                f"{far_share(plain)}, {far_share(launched)}, {told('explain', str(plain.pid))}"
            ) from error
        assert abs(far_share(launched) - 0.25) < 0.005
        # One that was launched under the policy is as it should be: nothing is moved for it.
        name = 'hetmemd_moved_pages_total{source_node="0",target_node="' + f'{far()}"}}'
        moved = metrics()[name]
        group.take(launched.pid)
        eventually("it is taken up", lambda: told("explain", str(launched.pid))["task"])
        measured_anew(group.path)
        assert metrics()[name] - moved < 100
        for popen in (plain, launched):
            assert popen.communicate(timeout=60)[0].strip() == "intact"
    finally:
        for popen in (plain, launched):
            popen.kill()
            popen.communicate()
