"""Formats of /proc, read from a tree in a temporary folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import Mempolicy, Mode
from hetmemd.kernel.root import Root

STAT = "42 (a) R (b) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 98765 1 2 3"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    task = tmp_path / "proc/42/task/42"
    task.mkdir(parents=True)
    (tmp_path / "proc/42/task/43").mkdir()
    (tmp_path / "proc/42/stat").write_text(STAT)
    (task / "numa_maps").write_text("55d0f0a00000 bind=static:0,2 file=/bin/x mapped=1 N0=1\n" * 50)
    (tmp_path / "proc/42/task/43/numa_maps").write_text("")
    (tmp_path / "proc/42/status").write_text("Name:\tx\nMems_allowed_list:\t0-1,3\nTracerPid:\t0\n")
    (tmp_path / "proc/42/cgroup").write_text("3:cpu:/x\n0::/system.slice/a.service\n")
    return Root(tmp_path)


def test_a_comm_with_parentheses_does_not_shift_the_fields(root: Root) -> None:
    stat = procfs.stat(root, 42)
    assert (stat.comm, stat.state, stat.ppid, stat.flags, stat.start) == ("a) R (b", "S", 7, 4194560, 98765)
    assert procfs.identify(root, 42) == procfs.ProcessId(42, 98765)


def test_threads_and_their_policies(root: Root) -> None:
    assert procfs.tids(root, 42) == [42, 43]
    policy = procfs.thread_policy(root, 42, 42)
    assert policy is not None
    assert (policy.mode, policy.nodes) == (Mode.BIND, frozenset({0, 2}))
    assert procfs.thread_policy(root, 42, 43) is None
    assert isinstance(policy, Mempolicy)


def test_a_policy_of_many_nodes_is_read_to_its_end(root: Root, tmp_path: Path) -> None:
    nodes = ",".join(str(node) for node in range(0, 128, 2))
    line = f"55d0f0a00000 weighted interleave=static:{nodes} file=/bin/x mapped=1 N0=1\n"
    (tmp_path / "proc/42/task/42/numa_maps").write_text(line * 3)
    policy = procfs.thread_policy(root, 42, 42)
    assert policy is not None
    assert policy.nodes == frozenset(range(0, 128, 2))


def test_status_and_cgroup(root: Root, tmp_path: Path) -> None:
    assert procfs.mems_allowed(procfs.status(root, 42)) == {0, 1, 3}
    assert procfs.cgroup_path(root, 42) == "/system.slice/a.service"
    (tmp_path / "proc/42/cgroup").write_text("0::/system.slice/a.service (deleted)\n")
    assert procfs.cgroup_path(root, 42) is None


@pytest.mark.parametrize("odd", ["\x1c", "\x0b", "\x85", "\u2028"])
def test_a_cgroup_cannot_pass_for_another_by_a_character_in_its_name(root: Root, tmp_path: Path, odd: str) -> None:
    (tmp_path / "proc/42/cgroup").write_text(f"0::/demo{odd}x\n")
    assert procfs.cgroup_path(root, 42) == f"/demo{odd}x"


def test_an_error_carries_its_path(root: Root, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        procfs.stat(root, 99)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("code", ["1", "0"], ids=["without the right", "a zombie"])
def test_address_spaces_of_which_nothing_is_told_are_not_alike(tmp_path: Path, code: str) -> None:
    def image(pid: int, code: str, stack: str, heap: str) -> procfs.Image:
        fields = ["S", "1", *["0"] * 47]
        fields[23], fields[25], fields[44] = code, stack, heap
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/stat").write_text(f"{pid} (a) " + " ".join(fields))
        return procfs.image(Root(tmp_path), pid)

    told = image(3, "4096", "8192", "12288")
    assert image(4, "4096", "8192", "12288").is_kin(told)
    assert not image(5, "4096", "8192", "16384").is_kin(told)
    untold = image(6, code, "0", "0")
    assert not untold.is_kin(untold)
    assert not untold.is_told
