"""Who is where, asked of this machine's kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hetmemd.kernel import cgroupfs, procfs
from hetmemd.remote import kin
from hetmemd.tasks import scan
from hetmemd.tasks.scan import Thread
from hetmemd.tasks.tree import Cgroup, CgroupTree
from tests.machine.eyes.harness import IDLE, ROOT, OwnCgroup, build, move, number, running

pytestmark = pytest.mark.root


def the(path: str) -> Cgroup:
    tree = CgroupTree(ROOT)
    tree.scan()
    return tree.by_path[path]


def test_the_tree_agrees_with_the_kernel(own: OwnCgroup) -> None:
    tree = CgroupTree(ROOT)
    tree.scan()
    deep = own.make("a")
    own.make("a/b")
    changes = tree.look(f"{deep}/b")
    assert {cgroup.path for cgroup in changes.appeared} == {deep, f"{deep}/b"}
    for cgroup in changes.appeared:
        assert cgroup.id == cgroupfs.cgroup_id(ROOT, cgroup.path)
    assert tree.by_id[tree.by_path[deep].parent or 0].path == own.path
    (own.directory / "a" / "b").rmdir()
    (own.directory / "a").rmdir()
    assert {cgroup.path for cgroup in tree.look(deep).vanished} == {deep, f"{deep}/b"}
    assert not scan.processes(ROOT, changes.appeared[0])
    assert not scan.threads(ROOT, changes.appeared[0])


def test_T1_threads_of_threaded_cgroups(own: OwnCgroup, tmp_path: Path) -> None:
    """Each of their cgroups has the process."""
    path = own.make("threaded")
    (own.directory / "threaded" / "cgroup.type").write_text("threaded")
    with running(build("kin", tmp_path), "threads") as process:
        tid = number(process)
        move(process.pid, own.path)
        assert scan.processes(ROOT, the(own.path)) == [process.pid]
        move(tid, path, "cgroup.threads")
        assert scan.processes(ROOT, the(own.path)) == [process.pid]
        assert scan.processes(ROOT, the(path)) == [process.pid]
        assert scan.elsewhere(ROOT, process.pid, own.path) == {tid: path}
        assert scan.threads(ROOT, the(own.path)) == [Thread(process.pid, process.pid)]
        assert scan.threads(ROOT, the(path)) == [Thread(process.pid, tid)]
        # And the other way round: the leader sits in the threaded cgroup.
        move(process.pid, path, "cgroup.threads")
        move(tid, own.path, "cgroup.threads")
        assert scan.processes(ROOT, the(own.path)) == [process.pid]
        assert scan.processes(ROOT, the(path)) == [process.pid]
        assert scan.elsewhere(ROOT, process.pid, path) == {tid: own.path}


def test_a_dead_leader_with_a_live_thread_is_kept(own: OwnCgroup, tmp_path: Path) -> None:
    # It is there before its leader ends: the kernel does not move what is exiting.
    enter = f'echo $$ > {own.directory}/cgroup.procs; exec "$@"'
    with running("sh", "-c", enter, "sh", build("kin", tmp_path), "headless") as process:
        tid = number(process)
        assert scan.processes(ROOT, the(own.path)) == [process.pid]
        assert procfs.living_thread(ROOT, process.pid) == tid


def test_a_zombie_is_nowhere(own: OwnCgroup, tmp_path: Path) -> None:
    with running(build("kin", tmp_path), "zombie") as process:
        child = number(process)
        move(process.pid, own.path)
        assert scan.processes(ROOT, the(own.path)) == [process.pid]
        assert procfs.living_thread(ROOT, child) is None


@pytest.mark.parametrize(("mode", "shared"), [("fork", False), ("vfork", True), ("clone", True), ("sibling", True)])
def test_shared_memory_is_seen_from_both_sides(mode: str, shared: bool, tmp_path: Path) -> None:
    with running(build("kin", tmp_path), mode) as process:
        child = number(process)
        assert kin.shares_memory(ROOT, child, child) is shared
        assert kin.shares_memory(ROOT, process.pid, process.pid) is shared


def test_what_may_not_be_compared_is_an_error_and_no_answer() -> None:
    """kcmp(2) needs the right to trace: whoever asks without it must take the careful way."""
    with running(*IDLE) as process:
        number(process)
        script = (
            f"from hetmemd.kernel.root import Root; from hetmemd.remote import kin;"
            f"print(kin.shares_memory(Root(), {process.pid}, {process.pid}))"
        )
        command = ["setpriv", "--bounding-set=-sys_ptrace", sys.executable, "-c", script]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert "PermissionError" in result.stderr
        assert not kin.shares_memory(ROOT, process.pid, process.pid)


def test_a_process_that_is_gone_says_so() -> None:
    with running(*IDLE) as process:
        number(process)
    with pytest.raises(FileNotFoundError):
        kin.shares_memory(ROOT, process.pid, process.pid)
