"""L7: `bind` is refused where its nodes have no headroom, of those that the cpuset leaves, and shown as refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from hetmemd.kernel.root import Root
from hetmemd.memory.headroom import Headroom
from tests.guest.daemon import CGROUPS, Child, Group, drop, eventually, policy, shown, told
from tests.machine.regions_program import Program
from tests.running import running

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("service")]
SPARE = 16 << 20
"""Bytes of headroom that are left: less than a `bind` needs."""


@pytest.fixture(scope="module")
def full() -> Generator[Child, None, None]:
    """Node 1 is nearly full."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    child = Child((Headroom(Root()).room(1) * 4096 - SPARE) >> 20, "ballast", None, "--membind=1")
    assert not Headroom(Root()).bears([1])
    assert Headroom(Root()).bears([0])
    yield child
    child.close()


@pytest.fixture
def confined(group: Group) -> Group:
    """To the full node."""
    for folder in (CGROUPS, CGROUPS / "test.slice"):
        (folder / "cgroup.subtree_control").write_text("+cpuset")
    (group.folder / "cpuset.mems").write_text("1")
    return group


def task(pid: int) -> tuple[str, str]:
    found = told("explain", str(pid))["task"] or {}
    return found.get("outcome", ""), found.get("reason", "")


def test_L7_of_a_bind_that_the_cpuset_cuts_to_a_full_node(full: Child, confined: Group) -> None:
    with running(["sleep", "10000"]) as popen:
        confined.take(popen.pid)
        drop("50-bind.toml", policy(confined.path, "bind", "0-1"))
        eventually("shown as refused", lambda: task(popen.pid) == ("refused", "headroom"))
        assert shown(popen.pid) == "default"
        # With the other node allowed there is room.
        (confined.folder / "cpuset.mems").write_text("0-1")
        eventually("applied", lambda: shown(popen.pid) == "bind=static:0-1")


def test_L7_of_regions(full: Child, group: Group) -> None:
    program = Program()
    try:
        group.take(program.popen.pid)
        drop("50-bind.toml", policy(group.path, "bind", "1", 'memory = ["heap", "anon"]\n'))
        eventually("shown as refused", lambda: task(program.popen.pid) == ("refused", "headroom"))
        assert program.all("heap", "anon") == {"default"}
        drop("50-bind.toml", policy(group.path, "bind", "0", 'memory = ["heap", "anon"]\n'))
        eventually("bound", lambda: program.all("heap", "anon") == {"bind=static:0"})
    finally:
        program.end()


def test_L7_by_hand(full: Child) -> None:
    program = Program()
    try:
        for more in (["--dry-run"], []):
            words = ["hetmemctl", "bind", str(program.popen.pid), "--mode", "bind", "--nodes", "1", *more]
            done = subprocess.run(words, check=False, capture_output=True, text=True)
            assert done.returncode == 1
            assert "L7" in done.stderr
        assert program.all("heap", "anon") == {"default"}
    finally:
        program.end()


def test_what_was_bound_to_a_full_node_is_given_back(full: Child, group: Group) -> None:
    """Giving back asks for no headroom: the application bound its region before the node was full."""
    program = Program()
    try:
        program.tell("bind own 1")
        assert program.policies("own") == {"bind:1"}
        group.take(program.popen.pid)
        more = 'memory = ["anon"]\nforeign = "override"\n'
        file = drop("50-bind.toml", policy(group.path, "interleave", "0", more))
        eventually("replaced", lambda: program.all("own", "anon") == {"interleave=static:0"})
        file.unlink()
        eventually("given back", lambda: program.policies("own") == {"bind:1"})
        eventually("and the rest", lambda: program.policies("anon") == {"default"})
    finally:
        program.end()
