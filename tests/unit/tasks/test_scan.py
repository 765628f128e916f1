"""Who is where, on folders: what the kernel of a test machine does not show."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.kernel.root import Root
from hetmemd.tasks import scan
from hetmemd.tasks.scan import Thread
from hetmemd.tasks.tree import Cgroup, CgroupTree


def machine(top: Path) -> Root:
    (top / "proc/self").mkdir(parents=True)
    (top / "proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (top / "sys/fs/cgroup").mkdir(parents=True)
    return Root(top)


def cgroup(root: Root, path: str, **files: str) -> None:
    folder = root.path(f"/sys/fs/cgroup{path}")
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"cgroup.{name}").write_text(content)


def task(root: Root, pid: int, *tids: int, path: str = "/") -> None:
    """A process and its threads, with the files that are read here; the kernel answers for threads in /proc as well."""
    for tid in {pid, *tids}:
        for folder in {root.path(f"/proc/{tid}"), root.path(f"/proc/{pid}/task/{tid}")}:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "status").write_text(f"Name:\tTgid:\t7\nUmask:\t0022\nTgid:\t{pid}\nPid:\t{tid}\n")
            (folder / "cgroup").write_text(f"0::{path}\n")


def the(root: Root, path: str) -> Cgroup:
    tree = CgroupTree(root)
    tree.scan()
    return tree.by_path[path]


def test_a_domain_lists_its_processes(tmp_path: Path) -> None:
    root = machine(tmp_path)
    cgroup(root, "/a", type="domain\n", procs="7\n8\n")
    assert scan.processes(root, the(root, "/a")) == [7, 8]


def test_T1_a_threaded_domain_lists_whoever_has_a_thread_there(tmp_path: Path) -> None:
    root = machine(tmp_path)
    cgroup(root, "/a", type="domain threaded\n", procs="7\n8\n9\n", threads="7\n81\n91\n")
    task(root, 7, path="/a")
    task(root, 8, 81, path="/a/b")
    task(root, 9, 91, path="/a")
    # 8 sits below and has only a thread here; 9 is dead, so cgroup.threads does not list it.
    assert set(scan.processes(root, the(root, "/a"))) == {7, 8, 9}
    assert scan.threads(root, the(root, "/a")) == [Thread(7, 7), Thread(8, 81), Thread(9, 91)]


def test_the_root_of_threaded_children(tmp_path: Path) -> None:
    root = machine(tmp_path)
    cgroup(root, "/", procs="7\n8\n", threads="7\n")
    task(root, 7)
    task(root, 8, path="/a")
    cgroup(root, "/a", type="domain\n")
    assert scan.processes(root, the(root, "/")) == [7, 8]
    cgroup(root, "/a", type="threaded\n")
    assert scan.processes(root, the(root, "/")) == [7]


def test_T1_threads_that_are_elsewhere(tmp_path: Path) -> None:
    root = machine(tmp_path)
    cgroup(root, "/a", type="domain threaded\n")
    cgroup(root, "/b", type="domain\n")
    task(root, 7, 71, 72, path="/a")
    assert scan.elsewhere(root, 7, "/a") == {}
    root.path("/proc/7/task/72/cgroup").write_text("0::/a/x\n")
    assert scan.elsewhere(root, 7, "/a") == {72: "/a/x"}
    assert scan.elsewhere(root, 7, "/b") == {}, "in a domain there is nothing to look for"
    root.path("/proc/7/task/72/cgroup").unlink()
    assert scan.elsewhere(root, 7, "/a") == {}


def test_what_ends_meanwhile_is_left_out(tmp_path: Path) -> None:
    root = machine(tmp_path)
    cgroup(root, "/a", type="threaded\n", threads="7\n71\n")
    task(root, 7, path="/a")
    assert scan.threads(root, the(root, "/a")) == [Thread(7, 7)]
    assert scan.processes(root, the(root, "/a")) == [7]
    gone = Cgroup(12345, "/gone", None)
    assert scan.processes(root, gone) == []
    assert scan.threads(root, gone) == []


def test_a_right_that_is_missing_is_not_hidden(tmp_path: Path) -> None:
    root = machine(tmp_path)
    cgroup(root, "/a", type="domain\n")
    # A directory in its place: as with EACCES, an error that does not mean "gone".
    root.path("/sys/fs/cgroup/a/cgroup.procs").mkdir()
    with pytest.raises(OSError, match=r"cgroup\.procs"):
        scan.processes(root, the(root, "/a"))
