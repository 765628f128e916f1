"""I6: what is expected is what was issued, cut to what the task may use: cpusets that change under a policy."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.daemon import CGROUPS, Child, Group, drop, eventually, metrics, policy, shown, told

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("service")]

Task = subprocess.Popen[bytes]
WEIGHTED = "weighted interleave=static:0-1"


def mems(group: Group, nodes: str) -> None:
    (group.folder / "cpuset.mems").write_text(nodes)


@pytest.fixture(autouse=True)
def cpusets(group: Group) -> None:
    for folder in (CGROUPS, CGROUPS / "test.slice"):
        (folder / "cgroup.subtree_control").write_text("+cpuset")
    mems(group, "0-1")


@pytest.fixture
def other() -> Generator[Group, None, None]:
    other = Group("/test.slice/other")
    yield other
    other.remove()


def state(group: Group) -> str:
    found = told("explain", group.path)["state"]
    assert isinstance(found, str)
    return found


def said(task: Task) -> dict[str, Any] | None:
    """What the service knows of a process in the cgroup where it is now; None where it has not looked at it there."""
    found: dict[str, Any] | None = told("explain", str(task.pid))["task"]
    return found


def test_I6_narrowed_and_widened_again(group: Group) -> None:
    """A static mask comes back whole, and the pages follow both ways."""
    child = Child(64, "small", group)
    try:
        drop("50-test.toml", policy(group.path))
        eventually("3:1", lambda: abs(child.shares().get(1, 0) - 0.25) < 0.02)
        mems(group, "0")
        eventually("narrowed by the kernel", lambda: shown(child.pid) == "weighted interleave=static:0")
        # The cpuset itself moves the memory out of the node; the daemon leaves it there, and calls that right.
        eventually("all on node 0", lambda: child.shares().get(1, 0) == 0)
        eventually("active on what is left", lambda: state(group) == "active")
        mems(group, "0-1")
        eventually("wide again", lambda: shown(child.pid) == WEIGHTED)
        eventually("3:1 again", lambda: abs(child.shares().get(1, 0) - 0.25) < 0.02)
        assert child.intact()
    finally:
        child.close()


def test_I6_a_task_that_is_given_a_policy_while_narrow_has_it_whole_when_wide(group: Group, task: Task) -> None:
    mems(group, "0")
    group.take(task.pid)
    drop("50-test.toml", policy(group.path))
    eventually("cut", lambda: shown(task.pid) == "weighted interleave=static:0")
    mems(group, "0-1")
    eventually("whole", lambda: shown(task.pid) == WEIGHTED)


def test_I6_a_disjoint_cpuset_blocks_and_gives_the_default_back(group: Group, task: Task) -> None:
    """The kernel would spread a disjoint static mask over everything."""
    group.take(task.pid)
    drop("50-test.toml", policy(group.path, "interleave", "1"))
    eventually("it holds", lambda: shown(task.pid) == "interleave=static:1")
    mems(group, "0")
    eventually("blocked", lambda: state(group) == "blocked")
    eventually("the default is back", lambda: shown(task.pid) == "default")
    mems(group, "0-1")
    eventually("active", lambda: state(group) == "active")
    eventually("it holds again", lambda: shown(task.pid) == "interleave=static:1")


def test_I6_a_task_that_moves_between_cpusets(group: Group, other: Group, task: Task) -> None:
    mems(other, "1")
    drop("50-test.toml", policy("/test.slice"))
    group.take(task.pid)
    eventually("whole", lambda: shown(task.pid) == WEIGHTED)
    eventually("said", lambda: (said(task) or {}).get("outcome") == "applied")
    before = said(task)
    assert before is not None
    pauses = metrics()["hetmemd_pause_seconds_count"]
    other.take(task.pid)
    eventually("cut", lambda: shown(task.pid) == "weighted interleave=static:1")
    # It is found in the other cgroup only by a look that was taken there.
    eventually("looked at", lambda: (said(task) or {}).get("outcome") == "applied")
    after = said(task)
    assert after is not None
    assert after["last_action_at"] == before["last_action_at"], "that it is cut is right: nothing is done about it"
    assert metrics()["hetmemd_pause_seconds_count"] == pauses
    group.take(task.pid)
    eventually("whole again", lambda: shown(task.pid) == WEIGHTED)


def test_I6_a_thread_list_of_mems_that_the_cgroup_does_not_tell(group: Group, task: Task) -> None:
    """A task may be confined by what stands above it: its own Mems_allowed counts."""
    (CGROUPS / "test.slice" / "cpuset.mems").write_text("0")
    try:
        group.take(task.pid)
        allowed = Path(f"/proc/{task.pid}/status").read_text().split("Mems_allowed_list:")[1].split()[0]
        assert allowed == "0"
        drop("50-test.toml", policy(group.path))
        eventually("cut", lambda: shown(task.pid) == "weighted interleave=static:0")
    finally:
        (CGROUPS / "test.slice" / "cpuset.mems").write_text("0-1")
    eventually("whole", lambda: shown(task.pid) == WEIGHTED)
